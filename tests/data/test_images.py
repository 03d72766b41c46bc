import io
import os
import warnings

import numpy as np
import PIL
import pytest
from PIL import Image, TiffImagePlugin

from skin_jax.data import images


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def test_image_of_the_right_size_is_unchanged(tmp_path):
    pixels = noise(8, 8)
    content = encoded(Image.fromarray(pixels))
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for source in (content, path):
        decoded = images.decode(source, 8)
        assert decoded.dtype == np.uint8
        np.testing.assert_array_equal(decoded, pixels)


def test_shrinking_averages_instead_of_picking_pixels():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    decoded = images.decode(encoded(Image.fromarray(stripes)), 8)
    assert decoded.min() > 110
    assert decoded.max() < 145


def test_aspect_ratio_is_not_kept():
    halves = np.zeros((10, 40, 3), np.uint8)
    halves[:, 20:] = 200
    decoded = images.decode(encoded(Image.fromarray(halves)), 10)
    assert decoded.shape == (10, 10, 3)
    assert (decoded[:, :4] == 0).all()
    assert (decoded[:, 6:] == 200).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(kind):
    top = np.zeros((16, 16, 3), np.uint8)
    top[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: the top becomes the right
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = images.decode(encoded(Image.fromarray(top), kind, exif=exif, **options), 16)
    assert decoded[:, 9:].min() > 240
    assert decoded[:, :7].max() < 15


def test_damaged_exif_leaves_the_pixels():
    pixels = noise(8, 8)
    content = encoded(Image.fromarray(pixels), "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\xff\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert images.decode(content, 8).shape == (8, 8, 3)


YCBCR = pytest.param(
    "YCbCr",
    marks=pytest.mark.skipif(
        int(PIL.__version__.split(".")[0]) < 13,
        reason="Pillow 12 does not read the TIFF of this mode that it writes",
    ),
)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK", YCBCR])
def test_any_mode_becomes_rgb(mode):
    grey = Image.fromarray(np.full((8, 8), 255, np.uint8)).convert(mode)
    kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    decoded = images.decode(encoded(grey, kind), 8)
    assert decoded.shape == (8, 8, 3)
    assert decoded.min() >= 254


def test_palette_with_transparency_gives_no_warning():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    decoded = images.decode(encoded(image, transparency=b"\x00\x80"), 8)
    assert (decoded == [10, 20, 30]).all()


def test_first_frame_is_taken(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    content = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    for source in (content, path):
        assert (images.decode(source, 8) == [255, 0, 0]).all()


@pytest.mark.parametrize(
    ("dtype", "kind"), [(np.uint16, "PNG"), (np.uint16, "TIFF"), (np.int32, "TIFF")]
)
def test_sixteen_bits_become_eight(dtype, kind):
    values = np.array([[0, 255], [256, 65535]], dtype)
    decoded = images.decode(encoded(Image.fromarray(values), kind), 2)
    assert decoded[..., 0].tolist() == [[0, 0], [1, 255]]
    assert (decoded == decoded[..., :1]).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_twelve_bits_in_sixteen_are_never_black(kind):
    image = Image.fromarray(np.array([[0, 16], [2048, 4095]], np.uint16))
    with pytest.raises(images.UnreadableImage, match="12 bits"):
        images.decode(encoded(image, kind), 2)
    if kind == "TIFF":
        tag = TiffImagePlugin.ImageFileDirectory_v2()
        tag[281] = 4095
        decoded = images.decode(encoded(image, kind, tiffinfo=tag), 2)
        assert decoded[..., 0].tolist() == [[0, 1], [128, 255]]


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.zeros((4, 4), np.float32), "floating-point"),
        (np.full((4, 4), 70_000, np.int32), "beyond 16 bits"),
        (np.full((4, 4), -1, np.int32), "beyond 16 bits"),
    ],
)
def test_undefined_ranges_are_refused(image, reason):
    with pytest.raises(images.UnreadableImage, match=reason):
        images.decode(encoded(Image.fromarray(image), "TIFF"), 4)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP"])
def test_truncated_files_are_unreadable(kind, tmp_path):
    content = encoded(Image.fromarray(noise(64, 64)), kind)
    for keep in (0, 10, len(content) // 2, len(content) - 200):
        path = tmp_path / str(keep)
        path.write_bytes(content[:keep])
        for source in (content[:keep], path):
            with pytest.raises(images.UnreadableImage) as caught:
                images.decode(source, 8)
            assert str(caught.value)


def test_text_and_missing_files_are_unreadable(tmp_path):
    with pytest.raises(images.UnreadableImage, match="not an image"):
        images.decode(b"<html>not found</html>", 8)
    with pytest.raises(images.PassingTrouble, match="No such file"):
        images.decode(tmp_path / "gone.jpg", 8)


def test_files_of_other_kinds_are_unreadable(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "null.png").symlink_to("/dev/null")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "null.png", "folder.png"):
        with pytest.raises(images.UnreadableImage, match="not a regular file") as caught:
            images.decode(tmp_path / name, 8)
        assert not isinstance(caught.value, images.PassingTrouble)


def test_a_file_of_an_absurd_size_is_not_read(tmp_path):
    path = tmp_path / "a.png"
    path.touch()
    os.truncate(path, 2**31)  # without a block on the disk
    with pytest.raises(images.UnreadableImage, match="too large: 2147483648 bytes"):
        images.decode(path, 8)


@pytest.mark.parametrize(
    "trouble", [PermissionError(13, "Permission denied"), MemoryError(), OSError(5, "I/O error")]
)
def test_passing_trouble_is_told_from_damage(tmp_path, monkeypatch, trouble):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(noise(8, 8))))

    def fail(path):
        raise trouble

    monkeypatch.setattr(images.Path, "read_bytes", fail)
    with pytest.raises(images.PassingTrouble, match=r"Permission denied|not enough memory|I/O"):
        images.decode(path, 8)


def test_too_little_memory_to_decode_is_no_damage(monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(images, "_to_rgb", fail)
    with pytest.raises(images.PassingTrouble, match="not enough memory"):
        images.decode(encoded(Image.fromarray(noise(8, 8))), 8)


@pytest.mark.parametrize("limit", [40, 60])
def test_decompression_bombs_are_unreadable(monkeypatch, limit):
    # Pillow warns above its limit and raises above twice its limit: neither is decoded.
    content = encoded(Image.fromarray(noise(10, 10)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(images.UnreadableImage, match=f"too large: more than {limit} pixels"):
        images.decode(content, 8)
