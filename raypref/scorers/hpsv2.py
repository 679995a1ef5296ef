"""Human Preference Score v2 and v2.1: a CLIP ViT-H tuned on human choices."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as T

from raypref.scorers import weights as files
from raypref.scorers.clip import OpenClip
from raypref.scorers.resizing import pad


class HpsV2(OpenClip):
    """Wu et al. 2023, arXiv 2306.09341: the cosine of image and text features (about 0.2 to 0.35; often given times 100).

    `weights`: HPS_v2.1_compressed.pt or, for version 2.0, HPS_v2_compressed.pt, as a file or owner/name/file of the hub.
    `model`: the open_clip architecture. As published, images are not cropped but padded with black to a square.
    """

    def __init__(
        self, weights: str = "xswu/HPSv2/HPS_v2.1_compressed.pt", model: str = "ViT-H-14", device: str = "cpu"
    ):
        state = files.read(weights)
        super().__init__(model, device=device)
        files.fill(self.model, state.get("state_dict", state))

    def features(self, images: Tensor) -> Tensor:
        config = self.model.visual.preprocess_cfg
        images = T.normalize(pad(images.to(self.device), self.size), config["mean"], config["std"])
        return F.normalize(self.model.encode_image(images).float(), dim=-1)
