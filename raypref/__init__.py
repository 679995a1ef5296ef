"""raypref: preference-tune text-to-image diffusion models on Ray (HG-DPO, RPO, Diffusion-DPO)."""

__version__ = "0.1.0"
