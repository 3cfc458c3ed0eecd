"""One image to pixels: modes, orientation, cropping, resizing, and what is no usable image."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fastgan.data.decoding import (
    BadImageError,
    ColourImageError,
    SmallImageError,
    Target,
    decode,
)

CHANNELS = (1, 3, 4)

# Packing silences these for the whole run; here images are decoded one by one.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Corrupt EXIF"),
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(height: int, width: int) -> np.ndarray:
    """A smooth colour picture, uint8 [height, width, 3], different at all four corners."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [255 * x / max(1, width - 1), 255 * y / max(1, height - 1), 128 + 0 * x]
    return np.stack(planes, axis=-1).astype(np.uint8)


GREY_VALUE = 100
MODES = {
    "1": lambda: Image.new("1", (20, 20), 1),
    "L": lambda: Image.new("L", (20, 20), GREY_VALUE),
    "LA": lambda: Image.new("LA", (20, 20), (GREY_VALUE, 255)),
    "P": lambda: Image.new("RGB", (20, 20), (GREY_VALUE,) * 3).quantize(4),
    "RGB": lambda: Image.new("RGB", (20, 20), (GREY_VALUE,) * 3),
    "RGBA": lambda: Image.new("RGBA", (20, 20), (GREY_VALUE, GREY_VALUE, GREY_VALUE, 255)),
    "I;16": lambda: Image.fromarray(np.full((20, 20), GREY_VALUE * 257, np.uint16)),
}


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_any_number_of_channels(mode: str, channels: int) -> None:
    pixels = decode(encoded(MODES[mode]()), Target(16, 16, channels))
    assert pixels.shape == (16, 16, channels)
    assert pixels.dtype == np.uint8
    expected = 255 if mode == "1" else GREY_VALUE
    assert np.abs(pixels[..., :3].astype(int) - expected).max() == 0
    if channels == 4:
        assert (pixels[..., 3] == 255).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_every_format_is_read(kind: str) -> None:
    image = Image.fromarray(gradient(40, 40))
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = decode(encoded(image, kind, **options), Target(40, 40, 3))
    tolerance = {"JPEG": 12, "GIF": 60}.get(kind, 0)
    assert np.abs(pixels.astype(int) - gradient(40, 40)).max() <= tolerance


def test_cmyk_jpeg_keeps_its_colours() -> None:
    image = Image.new("RGB", (32, 32), (200, 40, 90)).convert("CMYK")
    pixels = decode(encoded(image, "JPEG", quality=95), Target(32, 32, 3))
    assert np.abs(pixels.astype(int) - [200, 40, 90]).max() <= 6


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    values = np.array([0, 128, 255, 256, 32768, 65535], dtype=np.uint16)
    image = Image.fromarray(np.repeat(values[None, :], 6, axis=0))
    pixels = decode(encoded(image), Target(6, 6, 1))
    assert pixels[0, :, 0].tolist() == np.rint(values / 257).astype(int).tolist()


@pytest.mark.parametrize("channels", [1, 3])
def test_transparency_is_composed_over_white(channels: int) -> None:
    image = Image.new("RGBA", (16, 16), (10, 20, 30, 0))
    assert (decode(encoded(image), Target(16, 16, channels)) == 255).all()


def test_transparency_of_palettes_and_single_colours_counts() -> None:
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([10, 20, 30] * 256)
    for data in (
        encoded(palette, transparency=0),
        encoded(Image.new("RGB", (16, 16), (1, 2, 3)), transparency=(1, 2, 3)),
    ):
        assert (decode(data, Target(16, 16, 3)) == 255).all()
        assert (decode(data, Target(16, 16, 4))[..., 3] == 0).all()


def test_transparency_is_kept_with_four_channels() -> None:
    image = Image.new("RGBA", (16, 16), (10, 20, 30, 77))
    assert (decode(encoded(image), Target(16, 16, 4)) == [10, 20, 30, 77]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_turns_the_picture_upright(orientation: int, kind: str) -> None:
    upright = Image.fromarray(gradient(48, 96))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose that stores it so
    stored = upright
    if orientation in undo:
        stored = upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode(encoded(stored, kind, exif=exif), Target(24, 48, 3))
    expected = np.asarray(upright.resize((48, 24), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(pixels.astype(int) - expected).max() <= 14


def test_damaged_exif_does_not_spoil_the_picture() -> None:
    data = encoded(Image.fromarray(gradient(32, 32)), "JPEG", exif=b"Exif\x00\x00MM\x00*rubbish")
    assert decode(data, Target(32, 32, 3)).shape == (32, 32, 3)


def test_an_image_of_the_targets_size_is_copied_exactly() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    assert np.array_equal(decode(encoded(Image.fromarray(noise)), Target(24, 40, 3)), noise)


@pytest.mark.parametrize("size", [(24, 41), (24, 60), (25, 40), (50, 40)])
def test_a_crop_without_a_change_of_scale_is_exact_and_centred(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    top, left = (size[0] - 24) // 2, (size[1] - 40) // 2
    pixels = decode(encoded(Image.fromarray(noise)), Target(24, 40, 3))
    assert np.array_equal(pixels, noise[top : top + 24, left : left + 40])


@given(
    st.integers(1, 80), st.integers(1, 80), st.integers(1, 40), st.integers(1, 40), st.booleans()
)
def test_any_size_becomes_any_size(
    height: int, width: int, target_height: int, target_width: int, as_array: bool
) -> None:
    pixels = gradient(height, width)
    data = pixels if as_array else encoded(Image.fromarray(pixels))
    result = decode(data, Target(target_height, target_width, 3, upscale=True))
    assert result.shape == (target_height, target_width, 3)
    if height >= target_height and width >= target_width:
        assert np.array_equal(result, decode(data, Target(target_height, target_width, 3)))
    else:
        with pytest.raises(SmallImageError, match=f"^{height}x{width}$"):
            decode(data, Target(target_height, target_width, 3))


def test_shrinking_is_antialiased() -> None:
    # A one-pixel chequerboard is grey from afar; sampling without a filter gives black or white.
    board = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)
    pixels = decode(encoded(Image.fromarray(board)), Target(16, 16, 1))
    assert np.abs(pixels.astype(int) - 127.5).max() <= 4


def test_jpeg_draft_decoding_does_not_show() -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    photo = Image.fromarray(coarse).resize((900, 600), Image.Resampling.BICUBIC)
    data = encoded(photo, "JPEG", quality=95)
    whole = Image.open(io.BytesIO(data)).crop((150, 0, 750, 600))
    exact = np.asarray(whole.resize((64, 64), Image.Resampling.LANCZOS)).astype(float)
    drafted = decode(data, Target(64, 64, 3)).astype(float)
    assert np.sqrt(((drafted - exact) ** 2).mean()) < 2.0


def test_colour_is_refused_only_where_grey_is_expected() -> None:
    grey_only = Target(16, 16, 1, refuse_colour=True)
    for mode in ("1", "L", "LA", "I;16", "P"):
        image = MODES[mode]()
        if mode == "P":
            image = Image.new("L", (20, 20), 9).quantize(4)
        assert decode(encoded(image), grey_only).shape == (16, 16, 1)
    for mode in ("RGB", "RGBA"):
        with pytest.raises(ColourImageError):
            decode(encoded(MODES[mode]()), grey_only)
    with pytest.raises(ColourImageError):
        decode(gradient(20, 20), grey_only)


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "an empty file"),
        (b"GIF89a", "."),
        (b"\xff\xd8\xff", "not an image"),
        (b"plain text", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (truncated(encoded(NOISE, "JPEG")), "truncated"),
        (truncated(encoded(NOISE, "PNG")), "."),
        (truncated(encoded(NOISE, "WEBP")), "."),
        (encoded(Image.new("1", (20000, 9000))), "decompression bomb"),
        (encoded(Image.new("1", (10000, 9000))), "decompression bomb"),
        (encoded(Image.new("F", (32, 32)), "TIFF"), "floating-point"),
        (encoded(Image.new("I", (32, 32), 70000), "TIFF"), "32-bit"),
    ],
)
def test_what_is_no_usable_image_is_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadImageError, match=reason):
        decode(data, Target(16, 16, 3))
