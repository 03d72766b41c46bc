"""Pictures of what a prediction rests on: an image next to its heat map."""

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

SMALLEST = 224
"""Least side of each of the two panels in pixels."""

_COLOURS = "viridis"
"""Even in lightness, so that it reads the same to colour-blind readers and in grey."""

_OPACITY = 0.6
_GAP = 4
_STRIP = 26
_FONT_SIZE = 14
_SCALE = "low", "high"
_BAR = 40, 10


def overlay(image: np.ndarray, heat_maps: Sequence[np.ndarray], caption: str) -> bytes:
    """A PNG: the image, the same under its heat map; below them a caption and the scale.

    Where the map is 0 the image shows unchanged; the higher it is, the more its colour covers.

    Args:
      image: uint8 [S, S, 3], enlarged by a whole factor to at least 224 pixels.
      heat_maps: one or several float [h, w] in [0, 1] of any sizes; their mean is shown.
      caption: names the class that they explain; in smaller letters where it is long.
    """
    side = image.shape[0] * -(-SMALLEST // image.shape[0])
    # Bicubic: a map of 4x4 would show creases otherwise.
    original, *maps = (
        Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
        for pixels in (image, *(np.asarray(heat_map, np.float32) for heat_map in heat_maps))
    )
    heat = np.mean([np.asarray(heat_map).clip(0.0, 1.0) for heat_map in maps], axis=0)
    cover = _OPACITY * heat[..., None]
    mixed = np.asarray(original) * (1.0 - cover) + _colours(heat) * cover
    picture = Image.new("RGB", (2 * side + _GAP, side + _STRIP), "white")
    picture.paste(original, (0, 0))
    picture.paste(Image.fromarray(mixed.round().astype(np.uint8)), (side + _GAP, 0))
    _caption(picture, caption)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)  # a quarter of the time, a fifth larger
    return buffer.getvalue()


def _caption(picture: Image.Image, text: str) -> None:
    """Writes the text into the lower strip, and at its right end what the colours mean."""
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(_FONT_SIZE)
    middle, x, (low, high) = picture.height - _STRIP / 2, picture.width - 4, _SCALE
    draw.text((x, middle), high, fill="black", font=font, anchor="rm")
    x -= round(font.getlength(high)) + 6 + _BAR[0]
    ramp = np.tile(np.linspace(0.0, 1.0, _BAR[0]), (_BAR[1], 1))
    picture.paste(Image.fromarray(_colours(ramp).astype(np.uint8)), (x, int(middle - _BAR[1] / 2)))
    draw.text((x - 6, middle), low, fill="black", font=font, anchor="rm")
    share = (x - 30 - font.getlength(low)) / font.getlength(text)
    font = ImageFont.load_default(_FONT_SIZE * min(1.0, share))
    draw.text((4, middle), text, fill="black", font=font, anchor="lm")


def _colours(heat: np.ndarray) -> np.ndarray:
    return matplotlib.colormaps[_COLOURS](heat)[..., :3] * 255.0
