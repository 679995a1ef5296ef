"""The judge: a small CNN that names attributes and gives features for a Frechet distance. It is never the scorer."""

from __future__ import annotations

import json
import pathlib

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from raypref.mini import renderer
from raypref.mini.data import labels_of


class Judge(nn.Module):
    """Images are float32 BCHW in [0, 1]; other sizes than 64 px are resized inside."""

    def __init__(self, width: int = 24, features: int = 64, image_size: int = 64):
        super().__init__()
        self.config = {"width": width, "features": features, "image_size": image_size}
        layers, channels = [], 3
        for out, stride in ((width, 2), (2 * width, 2), (2 * width, 1), (4 * width, 2), (4 * width, 1), (4 * width, 2)):
            layers += [nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.SiLU()]
            channels = out
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.project = nn.Linear(channels * (image_size // 16) ** 2, features)
        self.heads = nn.ModuleDict({name: nn.Linear(features, len(v)) for name, v in renderer.ATTRIBUTES.items()})
        self.realism_head = nn.Linear(features, 1)

    def features(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """[B, D] features."""
        size = self.config["image_size"]
        if images_BCHW.shape[-2:] != (size, size):
            images_BCHW = nn.functional.interpolate(
                images_BCHW, (size, size), mode="bilinear", antialias=True, align_corners=False
            )
        return self.project(self.body(2 * images_BCHW - 1))

    def forward(self, images_BCHW: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """(logits [B, K] by attribute, estimate of the realism [B])."""
        features = self.features(images_BCHW)
        return {name: head(features) for name, head in self.heads.items()}, self.realism_head(features).squeeze(-1)

    @torch.no_grad()
    def attribute_logits(self, images_BCHW: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits [B, K] of every attribute's values, in the order of `renderer.ATTRIBUTES`."""
        return self(images_BCHW)[0]

    @torch.no_grad()
    def realism(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """[B], about 1 for full renderings and 0 for degraded ones."""
        return self(images_BCHW)[1]

    def attribute_correct(self, images_BCHW: torch.Tensor, captions: list[str]) -> torch.Tensor:
        """[B, A], 1 where the image shows the value its caption names, 0 where not, NaN where it names none."""
        labels_BA = torch.tensor([labels_of(renderer.parse_caption(c)) for c in captions], device=images_BCHW.device)
        found_BA = torch.stack([v.argmax(-1) for v in self.attribute_logits(images_BCHW).values()], 1)
        return torch.where(labels_BA >= 0, (found_BA == labels_BA).float(), torch.nan)

    def attribute_accuracy(self, images_BCHW: torch.Tensor, captions: list[str]) -> torch.Tensor:
        """[B], share of the attributes named in the caption that the image shows."""
        return self.attribute_correct(images_BCHW, captions).nanmean(1)


def save_judge(judge: Judge, path: str | pathlib.Path) -> None:
    """config.json and model.safetensors (half precision)."""
    path = pathlib.Path(path)
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(judge.config, indent=2) + "\n")
    state = {k: v.half() if v.is_floating_point() else v for k, v in judge.state_dict().items()}
    save_file({k: v.cpu().contiguous() for k, v in state.items()}, path / "model.safetensors")


def load_judge(path: str | pathlib.Path, device: str | torch.device = "cpu") -> Judge:
    """The trained judge, float32, in evaluation mode and without gradients for its weights."""
    path = pathlib.Path(path)
    judge = Judge(**json.loads((path / "config.json").read_text()))
    judge.load_state_dict(load_file(path / "model.safetensors"))
    return judge.float().eval().requires_grad_(False).to(device)
