"""The miniature world: a procedural renderer of captioned people and tiny checkpoints in real formats."""
