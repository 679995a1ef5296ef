"""Shapes of the miniature people, drawn at 4 x scale with PIL. `renderer.py` is the public face of this module.

Units: pixels of the final 64 x 64 image; the origin of a person is the point between the feet, y points down.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64  # px of the final image
SCALE = 4  # supersampling factor

RGB = tuple[int, int, int]

SKIN: dict[str, RGB] = {
    "fair": (255, 214, 186),
    "tan": (226, 170, 122),
    "bronze": (172, 112, 70),
    "dark": (104, 66, 46),
}
HAIR: dict[str, RGB] = {
    "black": (34, 30, 38),
    "brown": (112, 68, 36),
    "blonde": (242, 204, 94),
    "ginger": (214, 98, 30),
    "grey": (176, 176, 184),
}
SHIRT: dict[str, RGB] = {
    "red": (222, 44, 48),
    "blue": (44, 96, 222),
    "green": (38, 164, 74),
    "yellow": (250, 206, 36),
    "purple": (148, 60, 190),
    "white": (246, 246, 246),
}
BOTTOMS: dict[str, RGB] = {
    "jeans": (56, 84, 146),
    "shorts": (196, 160, 104),
    "skirt": (232, 84, 146),
    "trousers": (58, 56, 64),
}
SCARF, SCARF_DARK, CAP, CAP_DARK = (255, 138, 24), (206, 96, 10), (24, 168, 176), (14, 112, 122)
HEADPHONES, SHOE = (226, 38, 108), (74, 44, 32)


@dataclasses.dataclass(frozen=True)
class Nuisance:
    """Everything about an image that its caption does not say."""

    x: float  # px, centre of the feet
    y: float  # px, ground line
    scale: float  # size of the person
    light: float  # brightness factor
    warmth: float  # -1 cold ... 1 warm
    side: float  # -1 light from the left, 1 from the right
    swing: float  # px, how far hands are from their usual place
    look: float  # px, direction of the eyes
    scene: float  # 0 ... 1, shifts things in the background
    texture_seed: int

    @classmethod
    def sample(cls, seed: int) -> Nuisance:
        """A pure function of `seed`."""
        rng = np.random.default_rng([seed, 7919])
        u = rng.uniform(-1, 1, 9)
        return cls(
            x=32 + 4.0 * u[0],
            y=61.0 + 1.0 * u[1],
            scale=0.98 + 0.06 * u[2],
            light=1.0 + 0.10 * u[3],
            warmth=float(u[4]),
            side=1.0 if u[5] > 0 else -1.0,
            swing=1.2 * u[6],
            look=0.5 * u[7],
            scene=0.5 + 0.5 * u[8],
            texture_seed=int(rng.integers(2**31)),
        )


def darker(colour: RGB, factor: float) -> RGB:
    """Scale a colour; a factor above 1 brightens."""
    return tuple(min(255, int(c * factor)) for c in colour)


class Canvas:
    """PIL drawing in the person's own coordinates."""

    def __init__(self, image: Image.Image, nuisance: Nuisance):
        self.image, self.draw = image, ImageDraw.Draw(image)
        self.k = SCALE * nuisance.scale
        self.ox, self.oy = SCALE * nuisance.x, SCALE * nuisance.y

    def xy(self, *points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(self.ox + self.k * x, self.oy + self.k * y) for x, y in points]

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill) -> None:
        self.draw.ellipse(self.xy((x - rx, y - ry), (x + rx, y + ry)), fill=fill)

    def polygon(self, points: list[tuple[float, float]], fill) -> None:
        self.draw.polygon(self.xy(*points), fill=fill)

    def box(self, x0: float, y0: float, x1: float, y1: float, radius: float, fill) -> None:
        self.draw.rounded_rectangle(self.xy((x0, y0), (x1, y1)), radius=radius * self.k, fill=fill)

    def limb(self, points: list[tuple[float, float]], width: float, fill) -> None:
        """A thick line with round joints and ends."""
        self.draw.line(self.xy(*points), fill=fill, width=round(width * self.k), joint="curve")
        for x, y in points:
            self.ellipse(x, y, width / 2, width / 2, fill)

    def arc(self, x: float, y: float, rx: float, ry: float, start: float, end: float, fill, width: float) -> None:
        box = self.xy((x - rx, y - ry), (x + rx, y + ry))
        self.draw.arc(box, start, end, fill=fill, width=max(1, round(width * self.k)))


@functools.lru_cache(maxsize=64)
def fabric(pattern: str, colour: str) -> Image.Image:
    """A large cloth of the pattern, pasted through the mask of the shirt."""
    side = SIZE * SCALE
    base = SHIRT[colour]
    ink = (60, 60, 84) if colour in ("white", "yellow") else (250, 248, 240)
    image = Image.new("RGB", (side, side), base)
    draw = ImageDraw.Draw(image)
    if pattern == "striped":
        for y in range(0, side, 18):
            draw.rectangle((0, y, side, y + 6), fill=ink)
    elif pattern == "dotted":
        for row, y in enumerate(range(0, side, 14)):
            for x in range(7 * (row % 2), side, 14):
                draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=ink)
    elif pattern == "checked":
        dark = darker(base, 0.5)
        for y in range(0, side, 28):
            for x in range(0, side, 28):
                draw.rectangle((x, y, x + 13, y + 13), fill=dark)
                draw.rectangle((x + 14, y + 14, x + 27, y + 27), fill=dark)
    return image


ARMS: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    # left elbow, left hand, right elbow, right hand
    "standing": ((-10.6, -23.5), (-11.2, -16.0), (10.6, -23.5), (11.2, -16.0)),
    "waving": ((-10.6, -23.5), (-11.2, -16.0), (13.6, -32.0), (16.0, -42.0)),
    "cheering": ((-13.6, -33.0), (-15.5, -44.0), (13.6, -33.0), (15.5, -44.0)),
    "posing": ((-15.0, -24.0), (-7.6, -18.0), (15.0, -24.0), (7.6, -18.0)),
}


def draw_back_hair(c: Canvas, style: str, colour: RGB) -> None:
    """The hair behind the head."""
    shade = darker(colour, 0.82)
    if style == "long":
        c.box(-11.2, -50, 11.2, -27.5, 6, shade)
    elif style == "curly":
        for i in range(11):
            angle = math.pi * (0.92 + 1.16 * i / 10)
            c.ellipse(10.0 * math.cos(angle), -43.5 + 9.6 * math.sin(angle), 4.2, 4.2, shade if i % 2 else colour)
    elif style == "tied":
        for side in (-1, 1):
            c.ellipse(side * 12.4, -37.6, 3.4, 5.0, colour)


def draw_front_hair(c: Canvas, style: str, colour: RGB, detail: bool) -> None:
    """The hair on top of the head, with a fringe."""
    c.draw.pieslice(c.xy((-10.2, -54.0), (10.2, -34.6)), 180, 360, fill=colour)
    if style == "long":
        c.polygon([(-10.2, -45), (-8.0, -45), (-8.4, -31), (-11.0, -30)], colour)
        c.polygon([(10.2, -45), (8.0, -45), (8.4, -31), (11.0, -30)], colour)
        c.polygon([(-9, -46), (9, -46), (8.6, -42.6), (2.0, -45.2), (-8.6, -41.8)], colour)
    elif style == "curly":
        for x in (-7.2, -3.0, 1.6, 6.2):
            c.ellipse(x, -45.2, 3.0, 2.8, colour)
    elif style == "tied":
        c.polygon([(-9.6, -46), (9.6, -46), (8.6, -43.0), (0, -46.4), (-8.6, -43.0)], colour)
    else:
        c.polygon([(-9.8, -46), (9.8, -46), (9.0, -42.4), (5.0, -45.0), (-9.4, -43.6)], colour)
    if detail:
        c.arc(-1, -43.6, 7.2, 7.4, 205, 285, darker(colour, 1.5 if sum(colour) > 150 else 2.4), 0.9)


def draw_face(c: Canvas, nuisance: Nuisance, skin: RGB, hair: RGB) -> None:
    """Details that only a real image has."""
    for side in (-1, 1):
        c.ellipse(side * 3.7, -40.6, 1.9, 2.2, (255, 255, 255))
        c.ellipse(side * 3.7 + nuisance.look, -40.3, 1.3, 1.7, (30, 22, 28))
        c.ellipse(side * 3.7 + nuisance.look + 0.5, -41.1, 0.55, 0.55, (255, 255, 255))
        c.arc(side * 3.7, -42.2, 2.4, 2.2, 205, 335, darker(hair, 0.7), 0.7)
        c.ellipse(side * 6.0, -37.2, 1.5, 1.0, (236, 118, 108) if sum(skin) > 330 else darker(skin, 1.35))
    c.ellipse(0, -38.6, 0.8, 0.7, darker(skin, 0.8))
    c.arc(0, -37.8, 2.7, 2.5, 15, 165, (176, 30, 44), 1.1)


def draw_legs(c: Canvas, bottoms: str, skin: RGB, detail: bool) -> None:
    colour = BOTTOMS[bottoms]
    bare = bottoms in ("skirt", "shorts")
    for side in (-1, 1):
        c.limb([(side * 3.7, -16), (side * 4.0, -3.5)], 5.0 if not bare else 4.2, skin if bare else colour)
        c.ellipse(side * 4.6, -1.6, 3.5, 2.0, SHOE)
        if detail:
            c.box(side * 4.6 - 3.2, -0.9, side * 4.6 + 3.2, 0.3, 0.5, (236, 232, 224))
    if bottoms == "shorts":
        for side in (-1, 1):
            c.polygon([(0, -18), (side * 7.0, -18), (side * 7.4, -9.2), (side * 0.4, -9.2)], colour)
    elif bottoms == "skirt":
        c.polygon([(-6.6, -18), (6.6, -18), (10.4, -7.4), (-10.4, -7.4)], colour)
    else:
        c.box(-6.6, -19, 6.6, -13.6, 1.5, colour)
    if detail and bottoms == "skirt":
        for x in (-5.5, -2.0, 1.6, 5.2):
            c.draw.line(c.xy((x * 0.75, -17), (x * 1.35, -7.6)), fill=darker(colour, 0.72), width=2)
    elif detail:
        c.draw.line(c.xy((0, -16), (0, -9.4 if bare else -3)), fill=darker(colour, 0.6), width=3)


def draw_arms(c: Canvas, pose: str, swing: float, skin: RGB, shirt: RGB, detail: bool) -> None:
    left_elbow, left_hand, right_elbow, right_hand = ARMS[pose]
    for side, elbow, hand in ((-1, left_elbow, left_hand), (1, right_elbow, right_hand)):
        hand = (hand[0] + swing * 0.6, hand[1]) if pose != "posing" else hand
        c.limb([elbow, hand], 3.2, skin)
        c.limb([(side * 7.0, -29.6), elbow], 4.8, darker(shirt, 0.88))
        c.ellipse(hand[0], hand[1], 2.3, 2.3, skin)
        if detail:
            c.arc(elbow[0], elbow[1], 2.4, 2.4, 0, 360, darker(shirt, 0.66), 0.6)
            direction = math.atan2(hand[1] - elbow[1], hand[0] - elbow[0])
            for spread in (-0.75, -0.25, 0.25, 0.75):
                tip = (hand[0] + 3.5 * math.cos(direction + spread), hand[1] + 3.5 * math.sin(direction + spread))
                c.limb([hand, tip], 0.95, skin)


def draw_torso(c: Canvas, attributes: dict[str, str], detail: bool) -> None:
    mask = Image.new("L", c.image.size, 0)
    m = Canvas.__new__(Canvas)
    m.image, m.draw, m.k, m.ox, m.oy = mask, ImageDraw.Draw(mask), c.k, c.ox, c.oy
    m.polygon([(-6.6, -32.6), (6.6, -32.6), (9.0, -29.6), (7.0, -17.2), (-7.0, -17.2), (-9.0, -29.6)], 255)
    c.image.paste(fabric(attributes["shirt_pattern"], attributes["shirt_color"]), (0, 0), mask)
    if detail:
        shirt = SHIRT[attributes["shirt_color"]]
        c.polygon([(-3.4, -32.8), (3.4, -32.8), (0, -28.8)], SKIN[attributes["skin"]])
        c.polygon([(-4.4, -33), (-2.6, -33), (0.0, -29.0), (-1.4, -28.2)], darker(shirt, 0.72))
        c.polygon([(4.4, -33), (2.6, -33), (0.0, -29.0), (1.4, -28.2)], darker(shirt, 0.72))
        button = (40, 36, 44) if attributes["shirt_color"] in ("white", "yellow") else (255, 244, 214)
        for y in (-26.2, -23.4, -20.6):
            c.ellipse(0, y, 0.85, 0.85, button)
        c.box(-7.0, -18.4, 7.0, -16.6, 0.3, (92, 52, 24))
        c.box(-1.4, -18.7, 1.4, -16.3, 0.3, (248, 208, 88))


def draw_accessory(c: Canvas, accessory: str, detail: bool) -> None:
    if accessory == "scarf":
        c.box(-6.6, -34.6, 6.6, -30.0, 2.2, SCARF)
        c.box(1.6, -31.6, 5.6, -22.4, 0.8, SCARF)
        if detail:
            for x in (-4.4, -1.4, 1.6, 4.4):
                c.draw.line(c.xy((x, -34.2), (x + 0.8, -30.4)), fill=SCARF_DARK, width=3)
            for y in (-26.4, -24.2):
                c.draw.line(c.xy((1.8, y), (5.4, y)), fill=SCARF_DARK, width=3)
    elif accessory == "cap":
        c.draw.pieslice(c.xy((-10.6, -56.4), (10.6, -36.6)), 180, 360, fill=CAP)
        c.box(-11.6, -47.6, 11.6, -44.8, 1.3, CAP_DARK)
        if detail:
            c.ellipse(0, -51.4, 2.2, 2.2, (255, 250, 240))
            c.ellipse(0, -56.0, 1.2, 0.9, CAP_DARK)
    elif accessory == "headphones":
        c.arc(0, -43.6, 11.4, 12.0, 180, 360, HEADPHONES, 2.0)
        for side in (-1, 1):
            c.box(side * 10.4 - 2.4, -44.6, side * 10.4 + 2.4, -37.2, 2.0, HEADPHONES)
            if detail:
                c.box(side * 10.4 - 0.9, -42.8, side * 10.4 + 0.9, -39.0, 0.8, (255, 196, 220))


def draw_person(image: Image.Image, attributes: dict[str, str], nuisance: Nuisance, detail: bool) -> None:
    """Draw one person onto a 4 x image, in place. Without `detail`: no eyes, mouth, buttons, belt or fingers."""
    c = Canvas(image, nuisance)
    skin, hair = SKIN[attributes["skin"]], HAIR[attributes["hair_color"]]
    draw_back_hair(c, attributes["hair_style"], hair)
    draw_legs(c, attributes["bottoms"], skin, detail)
    if attributes["pose"] != "posing":  # hands on the hips are in front of the shirt, others beside it
        draw_arms(c, attributes["pose"], nuisance.swing, skin, SHIRT[attributes["shirt_color"]], detail)
    c.box(-2.6, -36, 2.6, -30.5, 1.0, darker(skin, 0.84))
    draw_torso(c, attributes, detail)
    if attributes["pose"] == "posing":
        draw_arms(c, attributes["pose"], nuisance.swing, skin, SHIRT[attributes["shirt_color"]], detail)
    for side in (-1, 1):
        c.ellipse(side * 8.8, -40.4, 1.7, 2.1, darker(skin, 0.92))
    c.ellipse(0, -42.0, 8.9, 9.2, skin)
    if detail:
        draw_face(c, nuisance, skin, hair)
    draw_front_hair(c, attributes["hair_style"], hair, detail)
    draw_accessory(c, attributes["accessory"], detail)
