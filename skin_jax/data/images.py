"""Image files to pixels: the one decoder, so that training and prediction see the same."""

import contextlib
import functools
import io
import math
import os
import stat
import threading
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from skin_jax.base.errors import UserError
from skin_jax.base.threads import workers

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".jp2"}
    | {".avif", ".ppm", ".pgm", ".tga"}
)
"""File name endings, in lower case, that are taken for images."""

THREADS = workers(8)
"""Threads that read and decode image files side by side."""

_LARGEST_FILE = 2**30
_MAX_SAMPLE_VALUE = 281  # a tag of TIFF
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


class PassingTrouble(UnreadableImage):
    """A file that cannot be read at the moment: permission, a missing disk, memory.

    That says nothing about the image: nobody may remember it as unreadable.
    """


def file_of(path: Path) -> Path:
    """The file that an image is in: its own, or the `FILE.npz` of `FILE.npz/ARRAY/ROW`."""
    file = path.parent.parent
    return file if file.suffix == ".npz" and file.is_file() else path


def read(path: Path) -> bytes:
    """Reads an image file; a row of an array as if it were one.

    PassingTrouble where the system refuses it; UnreadableImage where it is not a regular file,
    larger than 1 GiB, or no row that can be read.
    """
    file = file_of(path)
    try:
        status = file.stat()
        if file is not path:
            return _row(file, path.parent.name, int(path.name), status.st_ctime_ns)
        if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for ever
            raise UnreadableImage("not a regular file")
        if status.st_size > _LARGEST_FILE:
            raise UnreadableImage(f"too large: {status.st_size} bytes")
        return path.read_bytes()
    except OSError as error:
        raise PassingTrouble(error.strerror or str(error)) from None
    except MemoryError:
        raise PassingTrouble("not enough memory") from None


AnyImage = str | os.PathLike[str] | Image.Image | np.ndarray
"""An image as a user of Python has it: a path, a PIL image, or uint8 [H, W, 3] or [H, W]."""


def sources(given: AnyImage | Sequence[AnyImage]) -> list[Path | Image.Image]:
    """One or several images, uint8 [N, H, W, 3] among them, each as `decode` takes it.

    Raises:
      UserError: no images, arrays of other dtypes or shapes, or what is no image.
    """
    if isinstance(given, str | os.PathLike | Image.Image):
        return sources([given])
    if isinstance(given, np.ndarray) and given.ndim < 4:
        return sources([given])
    found = [_source(image) for image in given]
    if not found:
        raise UserError("there are no images; give at least one")
    return found


def _source(image: Any) -> Path | Image.Image:
    if isinstance(image, str | os.PathLike):
        return Path(image)
    if isinstance(image, Image.Image):
        return image
    if not hasattr(image, "__array__"):
        raise UserError(
            f"an image is a path, a PIL image or an array uint8 [H, W, 3], not a "
            f"{type(image).__name__}"
        )
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        raise UserError(
            f"an image is an array of {pixels.dtype}, whose range is not defined; give uint8, 0 to "
            "255"
        )
    if not (pixels.size and (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3))):
        raise UserError(
            f"an image is an array of shape {list(pixels.shape)}; give [H, W, 3] in RGB, [H, W] in "
            "grey, or [N, H, W, 3] for several"
        )
    return Image.fromarray(pixels)


def decode(source: Path | bytes | Image.Image, size: int) -> np.ndarray:
    """Decodes an image and resizes it to a square; the aspect ratio is not kept.

    The source is a file's path, its bytes, a PIL image, which stays open, or `FILE.npz/ARRAY/ROW`:
    a row of uint8 [N, H, W, 3] or [N, H, W]. The EXIF orientation is applied, of several frames the
    first is taken, an alpha channel is ignored; 16 bits are cut to the upper 8 of those that the
    file says are used, which is refused where only the lower 12 have values and it does not.
    Bilinear with antialiasing (Pillow widens the filter when it shrinks); an RGB image that has the
    size already passes through unchanged. May be called from several threads.

    Returns:
      uint8 [size, size, 3], RGB, contiguous and writable.

    Raises:
      UnreadableImage: `read` refuses the file, or Pillow cannot decode it to the end.
    """
    opened: contextlib.AbstractContextManager[Image.Image]
    try:
        if isinstance(source, Image.Image):
            opened = contextlib.nullcontext(source)
        else:
            content = source if isinstance(source, bytes) else read(source)
            with _quiet():
                opened = Image.open(io.BytesIO(content))
        with opened as image:
            rgb = _to_rgb(_loaded(image))
            rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
    except UnreadableImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = Image.MAX_IMAGE_PIXELS
        raise UnreadableImage(f"too large: more than {limit} pixels") from None
    except UnidentifiedImageError:
        raise UnreadableImage("not an image that Pillow knows, or empty") from None
    except MemoryError:
        raise PassingTrouble("not enough memory") from None
    # Pillow's plugins raise almost anything on damaged input: OSError, SyntaxError, struct.error,
    # zlib.error, IndexError... All of it means the same here.
    except Exception as error:
        raise UnreadableImage(" ".join(f"{error}".split()) or type(error).__name__) from None
    return np.array(rgb, np.uint8)


class Rows:
    """The rows of an array in an `.npz`, read one after the other: it may be larger than memory.

    May be called from several threads, in an order that is nearly that of the rows. A ValueError
    where there is no such array, or it is damaged.
    """

    _KEPT = 256

    def __init__(self, path: Path, array: str):
        self._path, self._array = path, array
        self._lock = threading.Lock()
        self._restart()

    def _restart(self) -> None:
        try:
            self._file = zipfile.ZipFile(self._path).open(f"{self._array}.npy")  # noqa: SIM115
            version = np.lib.format.read_magic(self._file)
            read = np.lib.format.read_array_header_1_0
            read = read if version == (1, 0) else np.lib.format.read_array_header_2_0
            self.shape, in_columns, self.dtype = read(self._file)
        except (KeyError, zipfile.BadZipFile, EOFError) as error:
            raise ValueError(f"no array {self._array} that can be read ({error})") from None
        if in_columns:
            raise ValueError(f"the array {self._array} lies in the order of Fortran")
        self._next = 0
        self._passed: dict[int, np.ndarray] = {}

    def read(self, number: int) -> np.ndarray:
        """One row, of the shape and dtype of the array without its first axis."""
        with self._lock:
            if number < self._next and number not in self._passed:
                self._restart()
            row = self.shape[1:]
            while self._next <= number:
                content = self._file.read(math.prod(row) * self.dtype.itemsize)
                self._passed[self._next] = np.frombuffer(content, self.dtype).reshape(row)
                self._passed.pop(self._next - self._KEPT, None)
                self._next += 1
            return self._passed.pop(number)


@functools.lru_cache(maxsize=4)
def _rows(path: Path, array: str, time: int) -> Rows:  # another time is another file
    return Rows(path, array)


def _row(path: Path, array: str, number: int, time: int) -> bytes:
    content = io.BytesIO()
    try:
        Image.fromarray(_rows(path, array, time).read(number)).save(content, "PPM")
    except (OSError, MemoryError):
        raise
    except Exception as error:  # of zipfile, zlib or NumPy
        raise UnreadableImage(f"{error}") from None
    return content.getvalue()


def _loaded(image: Image.Image) -> Image.Image:
    """Decodes and turns upright."""
    with contextlib.nullcontext() if image.format in _SILENT_FORMATS else _quiet():
        image.load()
    turn = None
    with _quiet(), contextlib.suppress(Exception):  # damaged metadata say nothing about the pixels
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
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


def _bits_used(image: Image.Image) -> int | None:
    """How many of the lower bits hold values, where the file, a TIFF, says so."""
    largest = getattr(image, "tag_v2", {}).get(_MAX_SAMPLE_VALUE)
    largest = largest[0] if isinstance(largest, tuple) else largest
    return int(largest).bit_length() if largest else None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels, whose range is not defined")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise UnreadableImage("integer pixels beyond 16 bits")
        bits = _bits_used(image)
        if bits is None and 0 < values.max() < 2**12:
            raise UnreadableImage(
                "16-bit pixels with values below 4096, as of a camera of 12 bits or fewer, and the "
                "file does not say so; scale them to the full range"
            )
        image = Image.fromarray((values >> max((bits or 16) - 8, 0)).clip(0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns of the lost transparency
    return image if image.mode == "RGB" else image.convert("RGB")
