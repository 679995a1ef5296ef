"""The only part of raypref that imports Ray or DeepSpeed."""
