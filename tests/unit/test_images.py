"""Images in and out, on real files: the odd ones that people's folders hold, and the broken ones."""

import contextlib
import io
import os
import pickle
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from raypref import images
from raypref.images import BadImage

MANY = 10_000_000


def photo(height=48, width=64) -> np.ndarray:
    """A smooth image that no flip, turn or swap of channels leaves unchanged."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([y * 255 // height, x * 255 // width, (x + 2 * y) * 85 // (height + width)], -1).astype(np.uint8)


def saved(image: Image.Image, format: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64))


def reason(data: bytes, max_pixels=MANY, min_side=16) -> str:
    with pytest.raises(BadImage) as caught:
        images.decode(data, max_pixels, min_side)
    assert len(str(caught.value)) > 10
    return caught.value.reason


@pytest.mark.parametrize("format", ["PNG", "BMP", "WEBP"])
def test_lossless_formats_keep_every_pixel(format):
    options = {"lossless": True} if format == "WEBP" else {}
    decoded = images.decode(saved(Image.fromarray(photo()), format, **options), MANY)
    assert decoded.mode == "RGB"
    np.testing.assert_array_equal(np.array(decoded), photo())


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_lossy_formats_come_close(format):
    decoded = np.array(images.decode(saved(Image.fromarray(photo()), format, quality=95), MANY))
    assert np.abs(decoded.astype(int) - photo()).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = photo()
    store = {  # how a camera that notes this orientation lays out the upright image
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(np.ascontiguousarray(store(upright))), "PNG", exif=exif)
    np.testing.assert_array_equal(np.array(images.decode(data, MANY)), upright)


def test_cmyk_jpeg():
    data = saved(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG")
    decoded = images.decode(data, MANY)
    assert decoded.mode == "RGB"
    red, green, blue = np.array(decoded).reshape(-1, 3).mean(0)
    assert red > 240 and green < 15 and blue < 15


def test_16_bit_grey_is_scaled_not_clipped():
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (32, 1))
    decoded = np.array(images.decode(saved(Image.fromarray(ramp), "PNG"), MANY))
    np.testing.assert_array_equal(decoded[..., 1], np.round(ramp / 257))


def test_16_bit_colour():
    rows = b"".join(b"\0" + struct.pack(">3H", 65535, 32768, 0) * 16 for _ in range(16))
    header = struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    decoded = np.array(images.decode(b"\x89PNG\r\n\x1a\n" + body, MANY))
    assert decoded[5, 5].tolist() == [255, 128, 0]


def test_alpha_is_composited_over_white():
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[:8, :, 3] = 255  # opaque black above, transparent black below
    decoded = np.array(images.decode(saved(Image.fromarray(pixels), "PNG"), MANY))
    assert (decoded[:8] == 0).all() and (decoded[8:] == 255).all()


def test_transparent_palette_and_grey():
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.paste(1, (0, 0, 16, 8))
    decoded = np.array(images.decode(saved(palette, "PNG", transparency=0), MANY))
    assert decoded[0, 0].tolist() == [10, 20, 30] and decoded[15, 0].tolist() == [255, 255, 255]
    grey = images.decode(saved(Image.new("LA", (16, 16), (0, 0)), "PNG"), MANY)
    assert (np.array(grey) == 255).all()
    assert (np.array(images.decode(saved(Image.new("1", (16, 16), 1), "PNG"), MANY)) == 255).all()


def test_one_frame_gif_is_an_image():
    assert images.decode(saved(Image.new("L", (20, 30), 7), "GIF"), MANY).size == (20, 30)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_animations_are_refused(format):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green")]
    assert reason(saved(frames[0], format, save_all=True, append_images=frames[1:])) == "animated"


def test_a_phone_photo_with_a_second_picture_is_its_first():
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green")]
    decoded = np.array(images.decode(saved(frames[0], "MPO", save_all=True, append_images=frames[1:]), MANY))
    assert decoded[..., 0].min() > 240 and decoded[..., 1].max() < 15


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_a_cut_file_is_refused_or_whole(format):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    data = saved(Image.fromarray(noise), format)
    whole = np.array(images.decode(data, MANY))
    for length in range(0, len(data), 61):
        assert reason(data[:length]) in ("truncated", "unsupported" if length < 16 else "truncated"), length
    for length in range(len(data) - 40, len(data)):  # the last bytes may be only an end marker
        try:
            np.testing.assert_array_equal(np.array(images.decode(data[:length], MANY)), whole)
        except BadImage as error:
            assert error.reason == "truncated"


def test_a_cut_progressive_jpeg_is_refused():
    data = saved(Image.fromarray(photo(200, 200)), "JPEG", progressive=True)
    assert reason(data[: len(data) * 2 // 3]) == "truncated"


def test_damage_in_the_middle():
    data = bytearray(saved(Image.fromarray(photo()), "PNG"))
    data[len(data) // 2] ^= 255
    assert reason(bytes(data)) == "corrupt"


@pytest.mark.parametrize("data", [b"hello, not an image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_other_files_are_unsupported(data):
    assert reason(data) == "unsupported"


def test_random_bytes_after_a_true_start_raise_only_bad_image():
    rng = np.random.default_rng(0)
    for start in (b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"RIFF\x20\0\0\0WEBPVP8 "):
        for _ in range(50):
            with pytest.raises(BadImage):
                images.decode(start + rng.bytes(200), MANY)


def test_flipped_bytes_raise_only_bad_image():
    rng = np.random.default_rng(1)
    for format in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
        data = saved(Image.fromarray(photo()), format)
        for _ in range(60):
            broken = bytearray(data)
            for place in rng.integers(0, len(data), 4):
                broken[place] = rng.integers(256)
            with contextlib.suppress(BadImage):
                assert images.decode(bytes(broken), MANY).mode == "RGB"


def test_tiny_images_are_refused():
    assert reason(saved(Image.new("RGB", (1, 1)), "PNG")) == "too_small"
    assert reason(saved(Image.new("RGB", (500, 15)), "PNG")) == "too_small"
    assert images.decode(saved(Image.new("RGB", (1, 1)), "PNG"), MANY, min_side=1).size == (1, 1)


@pytest.mark.parametrize("size", [(5000, 5000), (12_000, 12_000), (60_000, 60_000)])
def test_a_decompression_bomb_is_refused_from_its_header(size):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert reason(png_header(*size)) == "too_large"


def test_the_pixel_limit_is_exact():
    data = saved(Image.new("RGB", (20, 30)), "PNG")
    assert images.decode(data, 600).size == (20, 30)
    assert reason(data, max_pixels=599) == "too_large"


def test_pil_settings_stay():
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    images.decode(saved(Image.new("RGB", (20, 30)), "PNG"), 600)
    reason(b"")
    after = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    assert before == after


def test_bad_image_survives_pickling():
    error = pickle.loads(pickle.dumps(BadImage("corrupt", "a message")))
    assert (error.reason, str(error)) == ("corrupt", "a message")


def test_decode_from_many_threads():
    good, bad = saved(Image.fromarray(photo()), "PNG"), b"no image"

    def attempt(i):
        try:
            return np.array(images.decode(bad if i % 3 == 0 else good, MANY)).sum()
        except BadImage as error:
            return error.reason

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(attempt, range(90)))
    assert found == ["unsupported" if i % 3 == 0 else photo().sum() for i in range(90)]


def test_fit_resizes_the_shorter_side_and_crops_the_centre():
    array, crop = images.fit(Image.fromarray(photo(100, 400)), (50, 50))
    assert array.shape == (50, 50, 3) and array.dtype == np.uint8
    assert crop == (100, 400, 0, 75)
    # column 25 of the crop is column 100 of the resized image, 200 of the original, where green is 127
    assert abs(int(array[25, 25, 1]) - 127) <= 2


def test_fit_to_other_shapes():
    assert images.fit(Image.fromarray(photo(37, 91)), (64, 32))[0].shape == (64, 32, 3)
    array, crop = images.fit(Image.fromarray(photo(90, 30)), (30, 60))  # enlarged: 30 wide to 60, so 180 high
    assert array.shape == (30, 60, 3) and crop[2:] == (75, 0)
    same, crop = images.fit(Image.fromarray(photo()), (48, 64))
    np.testing.assert_array_equal(same, photo())
    assert crop[2:] == (0, 0)


def test_fit_of_a_thin_strip_needs_no_more_memory_than_the_result():
    strip = Image.new("RGB", (400_000, 16), "red")  # as a whole at this height: 12.8 million pixels wide, 19 GB
    array, crop = images.fit(strip, (512, 512))
    assert array.shape == (512, 512, 3) and (array == (255, 0, 0)).all()
    assert crop[3] == (400_000 * 32 - 512) // 2


def test_fit_is_antialiased():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    assert images.fit(Image.fromarray(stripes), (32, 32))[0].std() < 10


@pytest.mark.parametrize("format", ["png", "webp", "jpeg"])
def test_encode_and_back(format):
    data = images.encode(photo(), format)
    assert data == images.encode(photo(), format)
    difference = np.abs(np.array(images.decode(data, MANY)).astype(int) - photo())
    assert difference.max() == 0 if format == "png" else difference.mean() < 3


def test_quality_matters():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert len(images.encode(noise, "jpeg", 30)) < len(images.encode(noise, "jpeg", 95))


def test_encode_refuses_what_is_no_image():
    with pytest.raises(ValueError, match="png, webp, jpeg"):
        images.encode(photo(), "tiff")
    for array in (photo().astype(np.float32), photo()[..., 0], photo().transpose(2, 0, 1)):
        with pytest.raises(ValueError, match=r"uint8 \[height, width, 3\]"):
            images.encode(array, "png")


def test_many_keep_their_order():
    arrays = [np.full((16, 16, 3), i, np.uint8) for i in range(40)]
    decoded = images.decode_many(images.encode_many(arrays, "png", threads=4), threads=4)
    assert [int(a[0, 0, 0]) for a in decoded] == list(range(40))
    with pytest.raises(BadImage):
        images.decode_many([images.encode(arrays[0], "png"), b""], threads=2)
    assert images.encode_many([], "png", 2) == [] == images.decode_many([], 2)


def test_tensors_and_back():
    arrays = [photo(), photo()[::-1]]
    tensor = images.to_tensor(arrays)
    assert tensor.shape == (2, 3, 48, 64) and tensor.dtype == torch.float32 and tensor.is_contiguous()
    assert tensor[0, 1, 3, 5] == photo()[3, 5, 1] / np.float32(255)
    for back, array in zip(images.to_uint8(tensor), arrays, strict=True):
        np.testing.assert_array_equal(back, array)


def test_to_uint8_rounds_and_clips():
    values = torch.tensor([-0.5, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 7.0]).reshape(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert images.to_uint8(values)[0][0, :, 0].tolist() == [0, 0, 0, 1, 255, 255]
    assert images.to_uint8(values.bfloat16())[0].dtype == np.uint8


def test_to_uint8_names_images_with_nan():
    batch = torch.zeros(3, 3, 4, 4)
    batch[1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"\[1\] of 3"):
        images.to_uint8(batch)


def test_to_tensor_wants_one_shape():
    for arrays in ([], [photo(), photo(20, 20)]):
        with pytest.raises(ValueError, match="one shape"):
            images.to_tensor(arrays)


def test_grid():
    small, large = np.zeros((4, 6, 3), np.uint8), np.full((8, 6, 3), 9, np.uint8)
    sheet = images.grid([[small, large], [large]], pad=2)
    assert sheet.shape == (2 + 10 + 10, 2 + 8 + 8, 3)
    assert (sheet[2:6, 2:8] == 0).all() and (sheet[2:10, 10:16] == 9).all() and (sheet[12:20, 2:8] == 9).all()
    assert (sheet[:2] == 255).all() and (sheet[12:, 10:] == 255).all()
    with pytest.raises(ValueError, match="at least one"):
        images.grid([[]], pad=1)


def test_real_photos():
    folder = os.environ.get("RAYPREF_TEST_DATA")
    if not folder:
        pytest.skip("RAYPREF_TEST_DATA does not name a folder of test data")
    for path in sorted(Path(folder).glob("dreambench/*/00.jpg")):
        array, _ = images.fit(images.decode(path.read_bytes(), MANY), (64, 64))
        assert array.shape == (64, 64, 3) and array.std() > 5
