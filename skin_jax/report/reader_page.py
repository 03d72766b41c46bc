"""The page of a reader study: one HTML file that needs no server and no network."""

import base64
import io
import json
from collections.abc import Sequence
from importlib import resources

import numpy as np
from PIL import Image

from skin_jax.data.classes import Classes
from skin_jax.eval.reader_items import COLUMNS

_PLACE = "/*STUDY*/null"


def html(study: str, codes: Sequence[str], images: np.ndarray, classes: Classes | None) -> str:
    """Renders the page. Of an image it holds the pixels and the code, and nothing else.

    Args:
      study: code of the study.
      codes: I codes of the images, in an order that tells nothing.
      images: uint8 [I, S, S, 3].
      classes: that readers choose a diagnosis from; None: they are not asked.
    """
    content = {
        "id": study,
        "columns": COLUMNS,
        "size": images.shape[1],
        "classes": list(zip(classes.names, classes.titles, strict=True)) if classes else [],
        "items": [(code, _png(image)) for code, image in zip(codes, images, strict=True)],
    }
    template = resources.files(__package__).joinpath("reader_page.html").read_text("utf-8")
    # "<" in a title must not end the script.
    return template.replace(_PLACE, json.dumps(content).replace("<", "\\u003c"))


def _png(pixels: np.ndarray) -> str:
    """One encoder for real and generated images, and no metadata; base64."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
