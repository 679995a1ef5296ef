"""Inception v3 as FID uses it (Heusel et al. 2017, arXiv 1706.08500): TensorFlow's network of 2015, its blocks and its resize."""

from __future__ import annotations

import io
import pickle

import torch
from torch import Tensor

FILE = "pt_inception-2015-12-05-6726825d.pth"


class Inception:
    """Pool features [B, 2048]; the Frechet distance of two sets of them is FID, as published values have it.

    `model`: the file pt_inception-2015-12-05-6726825d.pth (also known as weights-inception-2015-12-05-6726825d.pth). The
    network is that of torch-fidelity: pip install 'raypref[fid]'.
    """

    def __init__(self, model: str, device: str = "cpu"):
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise ValueError(f"needs the package torch-fidelity ({error}): pip install 'raypref[fid]'") from None
        try:
            weights = torch.load(model, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            raise ValueError(
                f"{model} holds more than tensors, and is not read; give the file of the weights"
            ) from None
        checked = io.BytesIO()  # the library would read any pickle, so it gets a copy of the tensors
        torch.save(weights, checked)
        checked.seek(0)
        try:
            self.network = FeatureExtractorInceptionV3("inception", ["2048"], checked).to(device)
        except RuntimeError:  # it lists some 600 keys
            raise ValueError(f"{model} holds other weights than those of FID's Inception, {FILE}") from None
        self.device = device

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.network((images * 255).round().byte().to(self.device))[0]
