"""Image files to pixels: the one decoder, so that training and prediction see the same."""

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""File name endings, in lower case, that are taken for images."""

_SILENT_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "WEBP")
_FILTERS = threading.Lock()
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation. ImageOps.exif_transpose also rewrites the metadata, and fails
on images whose metadata are damaged."""


class UnreadableImage(ValueError):  # noqa: N818 - says what it is; "error" would add nothing
    """An image that cannot be decoded completely; the message is the reason, one clause."""


def decode(source: Path | bytes | BinaryIO, size: int) -> np.ndarray:
    """Decodes one image and resizes it to a square; the aspect ratio is not kept.

    The EXIF orientation is applied, of several frames the first is taken, an alpha channel is
    ignored, 16 bits are cut to the upper 8. Bilinear with antialiasing (Pillow widens the filter
    when it shrinks); an RGB image that has the size already passes through unchanged. May be called
    from several threads.

    Args:
      source: a file's path, its bytes, or an open binary file.
      size: side of the result in pixels.

    Returns:
      uint8 [size, size, 3], RGB, contiguous and writable.

    Raises:
      UnreadableImage: Pillow cannot decode it to the end.
    """
    try:
        with _quiet():
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        with image:
            rgb = _to_rgb(_loaded(image))
            rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
    except UnreadableImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = Image.MAX_IMAGE_PIXELS
        raise UnreadableImage(f"too large: more than {limit} pixels") from None
    except UnidentifiedImageError:
        raise UnreadableImage("not an image that Pillow knows, or empty") from None
    # Pillow's plugins raise almost anything on damaged input: OSError, SyntaxError, struct.error,
    # zlib.error, IndexError... All of it means the same here.
    except Exception as error:
        raise UnreadableImage(" ".join(f"{error}".split()) or type(error).__name__) from None
    return np.array(rgb, np.uint8)


def _loaded(image: Image.Image) -> Image.Image:
    """Decodes and turns upright."""
    if image.format in _SILENT_FORMATS:
        image.load()
    else:
        with _quiet():
            image.load()
    with _quiet():
        turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """For what Pillow warns in: headers, metadata and, in the rarer formats, pixels.

    Warning filters are global, so threads take turns in it; the rest runs in parallel.
    """
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata say nothing about the pixels
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels, whose range is not defined")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise UnreadableImage("integer pixels beyond 16 bits")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns of the lost transparency
    return image if image.mode == "RGB" else image.convert("RGB")
