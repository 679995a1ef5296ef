"""Images in and out: untrusted bytes to RGB, RGB to bytes, arrays to tensors.

Shapes: HWC is a uint8 numpy array [height, width, 3]; BCHW is a torch tensor [batch, 3, height, width] in [0, 1].
Everything here is a pure function and safe to call from many threads; no PIL setting is changed.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import torch

# A closed list: PIL would otherwise offer the bytes to every plugin it has, among them ones that start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 64_000_000  # decode_many's limit, for images that this package wrote itself
THREADS = 4  # of decoding and encoding beside a model

_UPRIGHT = {  # EXIF orientation -> what turns the stored pixels upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ENDINGS = {b"\xff\xd8": b"\xff\xd9", b"\x89PNG": b"IEND\xaeB`\x82", b"GIF8": b";"}  # first bytes -> last bytes

_SAVE = {
    "png": {"compress_level": 6},
    "webp": {"method": 4},
    "jpeg": {"subsampling": 0},  # 4:2:0 would blur colour, which the colour statistics measure
}


class BadImage(ValueError):
    """An image that cannot be used. `reason` is one word for counting:

    truncated, corrupt, too_large, too_small, animated, unsupported (from `decode`); missing, unreadable, refused
    (from `raypref.sources.fetching.fetch`).
    """

    def __init__(self, reason: str, message: str):
        super().__init__(reason, message)  # both in args, so that the exception survives pickling
        self.reason = reason

    def __str__(self) -> str:
        return self.args[1]


def decode(data: bytes, max_pixels: int, min_side: int = 16) -> Image.Image:
    """Bytes of a JPEG, PNG, WebP, GIF or BMP file -> upright 8-bit RGB image; ICC profiles are ignored.

    Transparency is composited over white. The size is checked from the header, before pixels are allocated.
    Raises BadImage, and nothing else, for whatever is wrong with the bytes.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_header(image, max_pixels, min_side)
            image.load()
            return _upright_rgb(image)
    except BadImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("too_large", f"image refused: {error}") from error
    except MemoryError as error:
        raise BadImage("too_large", "image does not fit into memory") from error
    except Exception as error:  # PIL's plugins raise OSError, SyntaxError, struct.error, KeyError, ... for bad files
        raise _bad_bytes(data, error) from error


def _check_header(image: Image.Image, max_pixels: int, min_side: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise BadImage("too_large", f"image of {width}x{height} pixels is over the limit of {max_pixels} pixels")
    if min(width, height) < min_side:
        raise BadImage("too_small", f"image of {width}x{height} pixels has a side under {min_side}")
    # Phones store a depth map or a preview as a second picture of a JPEG (format MPO): the first one is the photo.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise BadImage("animated", f"animated {image.format} with more than one frame")


def _upright_rgb(image: Image.Image) -> Image.Image:
    orientation = image.getexif().get(0x0112, 1)
    if image.mode.startswith("I"):  # 16-bit grey (of a PNG); PIL's own conversion clips instead of scaling
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _bad_bytes(data: bytes, error: Exception) -> BadImage:
    """Names what PIL complained about; a file that lacks its own end counts as truncated."""
    detail = f"{type(error).__name__}: {error}"
    known = data.startswith((*_ENDINGS, b"BM")) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")
    ended = data.rstrip(b"\0")  # some writers pad
    cut = any(data.startswith(start) and not ended.endswith(end) for start, end in _ENDINGS.items())
    cut |= data[:4] == b"RIFF" and int.from_bytes(data[4:8], "little") + 8 > len(data)
    if not data or cut or "truncated" in str(error).lower():
        return BadImage("truncated", f"image file is cut short at {len(data)} bytes ({detail})")
    if not known:
        return BadImage("unsupported", f"not an image of a kind that is read ({', '.join(FORMATS)})")
    return BadImage("corrupt", f"image file cannot be decoded ({detail})")


def fit(image: Image.Image, size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Resize the shorter side (antialiased) and crop the centre -> (HWC of `size` = (height, width), crop).

    crop: original height and width (pixels before the resize), top and left (of the crop, in resized pixels), as SDXL is
    conditioned on them.
    """
    height, width = size
    scale = max(height / image.height, width / image.width)
    resized_h, resized_w = max(height, round(image.height * scale)), max(width, round(image.width * scale))
    top, left = (resized_h - height) // 2, (resized_w - width) // 2
    # only the part that stays is resized: the whole of a thin strip would not fit into memory
    x, y = image.width / resized_w, image.height / resized_h
    box = (left * x, top * y, (left + width) * x, (top + height) * y)
    cropped = image.resize((width, height), Image.Resampling.LANCZOS, box=box)
    return np.array(cropped.convert("RGB")), (image.height, image.width, top, left)


def encode(array: np.ndarray, format: str, quality: int = 95) -> bytes:
    """HWC -> bytes of a "png" (lossless), "webp" or "jpeg"; `quality` 1..100 is for the last two. Deterministic."""
    if format not in _SAVE:
        raise ValueError(f"image format {format!r} is unknown; choose one of {', '.join(_SAVE)}")
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"encode takes uint8 [height, width, 3], not {array.dtype} {list(array.shape)}; see to_uint8")
    options = _SAVE[format] if format == "png" else _SAVE[format] | {"quality": quality}
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(out, format, **options)
    return out.getvalue()


def encode_many(arrays: Sequence[np.ndarray], format: str, threads: int, quality: int = 95) -> list[bytes]:
    """`encode` for many images, in their order; threads help because PIL's codecs release the interpreter lock."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(partial(encode, format=format, quality=quality), arrays))


def decode_many(blobs: Sequence[bytes], threads: int, max_pixels: int = MAX_PIXELS) -> list[np.ndarray]:
    """Bytes of many images that this package wrote -> HWC each, in their order. Raises BadImage for the first bad."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda data: np.array(decode(data, max_pixels, min_side=1)), blobs))


def to_tensor(arrays: Sequence[np.ndarray]) -> torch.Tensor:
    """HWC images of one size -> float32 BCHW in [0, 1], on the CPU."""
    import torch  # here, so that workers which only decode do not load it

    shapes = {array.shape for array in arrays}
    if len(shapes) != 1:
        raise ValueError(f"to_tensor takes one or more images of one shape, not shapes {sorted(shapes)}; use fit first")
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float().div(255).contiguous()


def to_uint8(images_BCHW: torch.Tensor) -> list[np.ndarray]:
    """BCHW of any float type, nominally in [0, 1] -> HWC each; rounded, clipped. ValueError if a value is NaN."""
    bad = images_BCHW.isnan().flatten(1).any(1).nonzero().flatten().tolist()
    if bad:  # a cast would turn them into black images without a word
        raise ValueError(f"images {bad} of {len(images_BCHW)} hold NaN (an fp16 VAE that overflows does this)")
    pixels = (images_BCHW.detach().float().clamp(0, 1) * 255).round().byte()
    return list(pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy())


def grid(rows: Sequence[Sequence[np.ndarray]], pad: int) -> np.ndarray:
    """Contact sheet, HWC on white: rows of HWC images, each at the top left of its cell, `pad` pixels around cells."""
    images = [image for row in rows for image in row]
    if not images:
        raise ValueError("grid needs at least one image")
    cell_h, cell_w = (max(image.shape[axis] for image in images) + pad for axis in (0, 1))
    columns = max(len(row) for row in rows)
    sheet = np.full((len(rows) * cell_h + pad, columns * cell_w + pad, 3), 255, np.uint8)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            top, left = pad + y * cell_h, pad + x * cell_w
            sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet
