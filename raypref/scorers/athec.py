"""Colour and composition statistics as Athec defines them (Peng 2022, Computational Communication Research 4(1)).

They describe; no direction is better. Edges by Canny and named colours are left out: they need OpenCV and a colour
dictionary. Sharpness depends on the size of an image, so compare images of one size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GREY = (0.299, 0.587, 0.114)  # Rec. 601
SALIENCY = 64  # side, pixels


class Athec:
    """Features [B, 14], one a column:

    brightness, brightness_sd: mean and standard deviation of grey, 0 to 1
    contrast_range: grey levels (1 to 256) in the narrowest range that holds 90 % of the pixels
    entropy: of the histogram of grey levels, nats
    saturation, saturation_sd, value, value_sd: of HSV, 0 to 1
    hue_count: how many of 20 hues have over 5 % of the commonest one's pixels, pale, dark and bright left out (Ke et al. 2006)
    colorfulness: Hasler and Suesstrunk 2003, 0 to about 150
    sharpness: standard deviation of the Laplacian of grey, in 8-bit levels
    depth_of_field: sharpness of the inner 2 x 2 of 4 x 4 blocks over that of all; above 1 where the edge is blurred
    balance: distance of the centre of mass of saliency from the centre, in sides of the image
    thirds: its distance from the nearest of the four points of the rule of thirds
    """

    columns = (
        "brightness", "brightness_sd", "contrast_range", "entropy", "saturation", "saturation_sd", "value", "value_sd",
        "hue_count", "colorfulness", "sharpness", "depth_of_field", "balance", "thirds",
    )  # fmt: skip

    def __init__(self, device: str = "cpu"):
        self.device = device

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        images = images.to(self.device).float()
        grey = (images * torch.tensor(GREY, device=images.device).view(1, 3, 1, 1)).sum(1)
        hue, saturation, value = hsv(images)
        found = [*moments(grey), *histogram(grey), *moments(saturation), *moments(value)]
        found += [hue_count(hue, saturation, value), colorfulness(images), *sharpness(grey), *composition(grey)]
        return torch.stack(found, dim=1)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation of [B, ...]: [B] each."""
    return x.flatten(1).mean(1), x.flatten(1).std(1, correction=0)


def hsv(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue in [0, 1), saturation and value of RGB images [B, 3, H, W]: [B, H, W] each."""
    (red, green, blue), high, low = images.unbind(1), images.amax(1), images.amin(1)
    chroma = (high - low).clamp_min(1e-8)
    of_blue = torch.where(high == green, (blue - red) / chroma + 2, (red - green) / chroma + 4)
    hue = torch.where(high == red, ((green - blue) / chroma) % 6, of_blue) / 6
    return hue % 1, (high - low) / high.clamp_min(1e-8), high


def counts(bins: Tensor, number: int, weight: Tensor | None = None) -> Tensor:
    """How many of [B, N] bin numbers are in each bin: [B, number]."""
    weight = torch.ones_like(bins, dtype=torch.float) if weight is None else weight.float()
    return torch.zeros(len(bins), number, device=bins.device).scatter_add(1, bins, weight)


def histogram(grey: Tensor) -> tuple[Tensor, Tensor]:
    """Narrowest range of grey levels with more than 90 % of the pixels, and entropy in nats: [B] each."""
    levels = (grey.flatten(1) * 255).round().long().clamp(0, 255)
    found, pixels = counts(levels, 256), levels.shape[1]
    up_to = found.cumsum(1)
    before = up_to - found  # each level's range begins with itself
    end = torch.searchsorted(up_to, before + 0.9 * pixels, right=True)
    width = torch.where(end < 256, end - torch.arange(256, device=end.device) + 1, 256)
    share = found / pixels
    return width.amin(1).float(), torch.special.entr(share).sum(1)


def hue_count(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Hues of 20 that an image has: [B]."""
    seen = (saturation >= 0.2) & (value >= 0.15) & (value <= 0.95)
    found = counts((hue.flatten(1) * 20).long().clamp(0, 19), 20, seen.flatten(1))
    return (found > 0.05 * found.amax(1, keepdim=True)).float().sum(1)


def colorfulness(images: Tensor) -> Tensor:
    """[B], of 8-bit levels: spread of the two opponent colours plus 0.3 times their mean's distance from grey."""
    red, green, blue = (255 * images).unbind(1)
    (mean_rg, sd_rg), (mean_yb, sd_yb) = moments(red - green), moments((red + green) / 2 - blue)
    return sd_rg.hypot(sd_yb) + 0.3 * mean_rg.hypot(mean_yb)


def sharpness(grey: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviation of the Laplacian, in 8-bit levels, and that of the inner blocks over the mean of all: [B] each."""
    x = F.pad(255 * grey[:, None], (1, 1, 1, 1), mode="reflect")
    laplacian = x[..., :-2, 1:-1] + x[..., 2:, 1:-1] + x[..., 1:-1, :-2] + x[..., 1:-1, 2:] - 4 * x[..., 1:-1, 1:-1]
    mean, square = (F.adaptive_avg_pool2d(y, 4)[:, 0] for y in (laplacian, laplacian.square()))
    blocks = (square - mean.square()).clamp_min(0).sqrt()
    inner, all_ = blocks[:, 1:3, 1:3].mean((1, 2)), blocks.mean((1, 2))
    plain = all_ < 1e-6  # nothing is sharper than anything else
    return moments(laplacian)[1], torch.where(plain, 1.0, inner / all_.clamp_min(1e-6))


def saliency(grey: Tensor) -> Tensor:
    """Spectral residual (Hou and Zhang 2007): where an image differs from the smooth spectrum of most. [B, 64, 64], sum 1."""
    small = F.interpolate(grey[:, None], (SALIENCY, SALIENCY), mode="bilinear", antialias=True)
    spectrum = torch.fft.fft2(small)
    log = spectrum.abs().clamp_min(1e-6).log()
    residual = log - F.avg_pool2d(F.pad(log, (1, 1, 1, 1), mode="circular"), 3, stride=1)
    found = torch.fft.ifft2(torch.polar(residual.exp(), spectrum.angle())).abs().square()
    kernel = torch.exp(-torch.arange(-8.0, 9.0, device=grey.device).square() / (2 * 3.0**2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    for weights, pad in ((kernel, (8, 8, 0, 0)), (kernel.transpose(2, 3), (0, 0, 8, 8))):
        found = F.conv2d(F.pad(found, pad, mode="replicate"), weights)
    plain = small.flatten(1).std(1, correction=0) < 1 / 510  # less than a grey level: every place is alike
    found = torch.where(plain.view(-1, 1, 1), 1.0, found[:, 0])
    return found / found.sum((1, 2), keepdim=True)


def composition(grey: Tensor) -> tuple[Tensor, Tensor]:
    """Distances of the centre of mass of saliency from the centre and from the nearest point of thirds: [B] each."""
    weights = saliency(grey)
    place = (torch.arange(SALIENCY, device=grey.device) + 0.5) / SALIENCY
    x, y = (weights.sum(1) * place).sum(1), (weights.sum(2) * place).sum(1)
    third = [torch.minimum((c - 1 / 3).abs(), (c - 2 / 3).abs()) for c in (x, y)]
    return (x - 0.5).hypot(y - 0.5), third[0].hypot(third[1])
