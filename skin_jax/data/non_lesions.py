"""Pictures that are no lesions, drawn on the spot, to see whether a classifier notices."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 .,;"))
_GRAINS = (1, 2, 4, 8, 16, 32)  # sides of the spots of noise, in parts of the picture's 1/64
_SKIN = (0.08, 0.15)  # sides of the pieces of skin, as shares of the picture's
_MARGIN = 0.05  # what they keep from the picture's edges, which may be black


def draw(count: int, size: int, skin: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Draws `count` pictures, as many of each kind: kind -> uint8 [count / 5, size, size, 3].

    plain colours; noise, coloured or grey, of several grains; stripes and checks; text; and pieces
    of skin: a corner of a picture of a lesion, of 8% to 15% of its side, enlarged.

    Args:
      count: a multiple of the number of kinds.
      size: the side of the pictures.
      skin: pictures uint8 [N, S, S, 3] of lesions, to cut skin from.
      seed: of all of them.
    """
    rng = np.random.default_rng(seed)
    kinds: dict[str, Callable[[int], Image.Image]] = {
        "plain colours": lambda i: Image.new("RGB", (size, size), _colour(rng)),
        "noise": lambda i: _noise(i, size, rng),
        "stripes and checks": lambda i: _pattern(i, size, rng),
        "text": lambda i: _text(size, rng),
        "pieces of skin": lambda i: _piece(i, skin[rng.integers(len(skin))], rng),
    }

    def drawn(make: Callable[[int], Image.Image]) -> np.ndarray:
        resized = (
            make(i).resize((size, size), Image.Resampling.BILINEAR)
            for i in range(count // len(kinds))
        )
        return np.stack([np.asarray(picture) for picture in resized])

    return {kind: drawn(make) for kind, make in kinds.items()}


def _colour(rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(rng.integers(0, 256, 3).tolist())


def _noise(number: int, size: int, rng: np.random.Generator) -> Image.Image:
    side = max(1, size // max(1, _GRAINS[number % len(_GRAINS)] * size // 64))
    levels = rng.integers(0, 256, (side, side, 3 if number % 2 else 1), np.uint8)
    return Image.fromarray(np.broadcast_to(levels, (side, side, 3)).copy())


def _pattern(number: int, size: int, rng: np.random.Generator) -> Image.Image:
    rows, columns = np.mgrid[:size, :size] * (2 * np.pi * rng.integers(2, 12) / size)
    angle = rng.uniform(0, np.pi)
    waves = np.cos(columns * np.cos(angle) + rows * np.sin(angle))
    if number % 2:
        across = np.cos(rows * np.cos(angle) - columns * np.sin(angle))
        waves = np.sign(waves) * np.sign(across)
    share = (waves[..., None] + 1) / 2
    mixed = share * np.array(_colour(rng)) + (1 - share) * np.array(_colour(rng))
    return Image.fromarray(mixed.astype(np.uint8))


def _text(size: int, rng: np.random.Generator) -> Image.Image:
    picture = Image.new("RGB", (size, size), _colour(rng))
    pen, height = ImageDraw.Draw(picture), int(rng.integers(max(size // 12, 6), max(size // 3, 8)))
    font, ink = ImageFont.load_default(height), _colour(rng)
    for top in range(0, size, height + height // 5):
        pen.text((0, top), "".join(rng.choice(_LETTERS, 40)), fill=ink, font=font)
    return picture


def _piece(number: int, picture: np.ndarray, rng: np.random.Generator) -> Image.Image:
    side = max(2, round(len(picture) * rng.uniform(*_SKIN)))
    low = round(len(picture) * _MARGIN)
    high = len(picture) - side - low
    top, left = (high if number & bit else low for bit in (1, 2))
    return Image.fromarray(picture[top : top + side, left : left + side])
