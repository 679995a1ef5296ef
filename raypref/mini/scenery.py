"""Backgrounds of the miniature world, drawn at 4 x scale."""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image, ImageDraw

from raypref.mini.drawing import SCALE, SIZE, Nuisance

BACKGROUNDS = ("park", "beach", "street", "room", "snow")
COLOURS = {  # top of the sky or wall, its bottom, the ground near the horizon, the ground in front
    "park": ((112, 186, 250), (196, 228, 255), (106, 188, 72), (74, 152, 50)),
    "beach": ((60, 168, 244), (180, 230, 250), (250, 224, 160), (236, 196, 124)),
    "street": ((160, 176, 200), (216, 222, 230), (138, 138, 146), (104, 104, 112)),
    "room": ((240, 208, 164), (226, 186, 138), (164, 104, 62), (126, 76, 44)),
    "snow": ((136, 160, 206), (206, 218, 240), (252, 253, 255), (226, 234, 248)),
}
HORIZON = 42.0  # px


@functools.lru_cache(maxsize=16)
def _gradient(background: str) -> Image.Image:
    """Sky and ground without things, [256, 256]."""
    side = SIZE * SCALE
    top, low, near, front = (np.array(c, np.float32) for c in COLOURS[background])
    h = int(HORIZON * SCALE)
    sky = top + (low - top) * np.linspace(0, 1, h)[:, None]
    ground = near + (front - near) * np.linspace(0, 1, side - h)[:, None]
    rows = np.concatenate([sky, ground])[:, None, :].repeat(side, 1)
    return Image.fromarray(rows.round().astype(np.uint8))


class _Brush:
    """PIL drawing in pixels of the final image."""

    def __init__(self, image: Image.Image):
        self.draw = ImageDraw.Draw(image)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill) -> None:
        self.draw.rectangle((x0 * SCALE, y0 * SCALE, x1 * SCALE, y1 * SCALE), fill=fill)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill) -> None:
        box = ((x - rx) * SCALE, (y - ry) * SCALE, (x + rx) * SCALE, (y + ry) * SCALE)
        self.draw.ellipse(box, fill=fill)

    def polygon(self, points, fill) -> None:
        self.draw.polygon([(x * SCALE, y * SCALE) for x, y in points], fill=fill)


def _park(b: _Brush, shift: float, detail: bool) -> None:
    for x in (4 + 6 * shift, 54 + 6 * shift):
        b.box(x - 1.4, 28, x + 1.4, HORIZON + 2, (120, 78, 44))
        b.ellipse(x, 22, 8, 10, (44, 132, 56))
        if detail:
            b.ellipse(x - 2, 19, 4, 5, (88, 176, 80))
            for dx, dy in ((-4, 24), (3, 18), (1, 27)):
                b.ellipse(x + dx, dy, 1.1, 1.1, (236, 66, 56))


def _beach(b: _Brush, shift: float, detail: bool) -> None:
    b.box(0, 31, 64, HORIZON, (28, 116, 196))
    b.ellipse(10 + 44 * shift, 9, 5, 5, (255, 236, 120))
    if detail:
        for y, x in ((33.5, 4), (36.5, 44), (38.6, 14), (34.6, 52)):
            b.box(x + 4 * shift, y, x + 7 + 4 * shift, y + 0.7, (214, 240, 255))
        b.polygon([(50 - 4 * shift, 31), (50 - 4 * shift, 21), (57 - 4 * shift, 30)], (255, 255, 255))


def _street(b: _Brush, shift: float, detail: bool) -> None:
    for i, (x, top, colour) in enumerate(
        ((-6, 12, (176, 108, 92)), (14, 4, (120, 132, 152)), (34, 14, (196, 168, 128)), (52, 7, (142, 98, 110)))
    ):
        x += 4 * shift
        b.box(x, top, x + 18, HORIZON, colour)
        if detail:
            for wx in (3, 8, 13):
                for wy in range(int(top) + 3, 38, 7):
                    b.box(x + wx, wy, x + wx + 2.6, wy + 3.6, (255, 226, 140) if (wx + wy + i) % 3 else (84, 104, 130))
    b.box(0, HORIZON, 64, HORIZON + 2, (190, 190, 194))


def _room(b: _Brush, shift: float, detail: bool) -> None:
    x = 2 + 5 * shift
    b.box(x, 8, x + 14, 24, (250, 246, 236))
    b.box(x + 1.2, 9.2, x + 12.8, 22.8, (128, 190, 240))
    if detail:
        b.box(x + 6.4, 9, x + 7.6, 23, (250, 246, 236))
        b.box(x + 1, 15.4, x + 13, 16.6, (250, 246, 236))
    x = 47 + 3 * shift
    b.box(x, 14, x + 13, HORIZON, (118, 70, 40))
    for row in range(3):
        y = 16 + 9 * row
        b.box(x + 1.2, y, x + 11.8, y + 7, (78, 44, 26))
        if detail:
            for i, colour in enumerate(((206, 60, 54), (62, 128, 190), (240, 196, 72), (80, 160, 96))):
                b.box(x + 1.8 + 2.4 * i, y + 1.4 + (i + row) % 3, x + 3.6 + 2.4 * i, y + 7, colour)
    b.box(0, HORIZON - 1.4, 64, HORIZON, (250, 240, 224))


def _snow(b: _Brush, shift: float, detail: bool) -> None:
    d = 8 * shift
    b.polygon([(-10 + d, HORIZON), (8 + d, 14), (28 + d, HORIZON)], (108, 122, 152))
    b.polygon([(28 + d, HORIZON), (50 + d, 8), (76 + d, HORIZON)], (90, 104, 138))
    b.polygon([(3.2 + d, 21.5), (8 + d, 14), (13.2 + d, 21.5)], (250, 252, 255))
    b.polygon([(44 + d, 17.2), (50 + d, 8), (57 + d, 17.2)], (250, 252, 255))
    for x in (3 + d / 2, 60 - d / 2) if detail else ():
        for y in (26, 31, 36):
            b.polygon([(x, y - 5), (x - 5, y + 5), (x + 5, y + 5)], (30, 92, 74))


_THINGS = {"park": _park, "beach": _beach, "street": _street, "room": _room, "snow": _snow}


def draw_background(background: str, nuisance: Nuisance, detail: bool) -> Image.Image:
    """A new 4 x image of the scene."""
    image = _gradient(background).copy()
    _THINGS[background](_Brush(image), nuisance.scene, detail)
    return image


@functools.lru_cache(maxsize=16)
def ground_texture(background: str) -> np.ndarray:
    """Large fixed noise [128, 128] in about [-1, 1]; images crop it at a place of their own."""
    rng = np.random.default_rng([BACKGROUNDS.index(background), 104729])
    noise = rng.normal(size=(128, 128)).astype(np.float32)
    if background == "park":  # blades of grass
        noise = noise + np.roll(noise, 1, 0)
    elif background == "room":  # planks
        noise = np.where(np.arange(128)[:, None] % 5 == 0, -2.0, 0.5 * (noise + np.roll(noise, 1, 1)))
    elif background == "street":  # paving
        y, x = np.mgrid[:128, :128]
        noise = 0.6 * noise - 1.5 * ((y % 7 == 0) | ((x + 5 * (y // 7)) % 11 == 0))
    return (noise / max(1.0, float(np.abs(noise).std()) * 2)).astype(np.float32)
