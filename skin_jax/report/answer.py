"""Pieces of HTML for a page that answers: what a run says about a photo, and images of its own."""

import base64
import io
from html import escape

import numpy as np
from PIL import Image

from skin_jax.data.classes import Classes

STYLE = """
.answer, .drawn { line-height: 1.45; }
.answer p { margin: .5rem 0; }
.answer img { width: 100%; max-width: 28rem; border-radius: 6px; display: block; }
.answer .first { font-size: 1.2rem; margin-top: .8rem; }
.answer .small, .drawn .small { font-size: .85rem; opacity: .75; }
.problem, .flag { padding: .6rem .8rem; border-radius: 6px; overflow-wrap: anywhere;
  color: #1a1a1a; border-left: 5px solid; }
.problem { background: #fdecea; border-color: #b3261e; }
.flag { background: #fff4d6; border-color: #b26a00; }
.answer ol { list-style: none; margin: .8rem 0; padding: 0; }
.answer li { display: grid; grid-template-columns: minmax(0, 15rem) minmax(2rem, 1fr) 3.6rem;
  gap: .15rem .7rem; align-items: center; padding: .2rem 0; margin: 0; }
.answer li span { overflow-wrap: anywhere; }
.answer li b { font-weight: 400; text-align: right; font-variant-numeric: tabular-nums; }
.answer li i { background: var(--border-color-primary); height: .6rem; border-radius: 3px; }
.answer li u { background: var(--color-accent); height: 100%; display: block; border-radius: 3px; }
.drawn div { display: grid; grid-template-columns: repeat(auto-fill, minmax(5.2rem, 1fr));
  gap: .4rem; }
.drawn.walk div { grid-template-columns: repeat(8, 1fr); gap: .2rem; }
.drawn img { width: 100%; display: block; border-radius: 4px; }
@media (max-width: 40rem) {
  .answer li { grid-template-columns: minmax(0, 1fr) 3.6rem; }
  .answer li span { grid-column: 1 / 3; }
  .drawn.walk div { grid-template-columns: repeat(4, 1fr); }
}
"""
"""The style sheet of these pieces, on a page with Gradio's variables."""


def answer(
    classes: Classes,
    probabilities: np.ndarray,
    *,
    calibrated: bool,
    percentile: float | None,
    flagged_above: float,
    picture: bytes | None,
) -> str:
    """What a run says about one photo.

    Args:
      classes: n of them.
      probabilities: float [n].
      calibrated: whether they are.
      percentile: share of the validation images that are more like the training images, in percent;
        None where nobody knows.
      flagged_above: the percentile above which a photo is flagged.
      picture: a PNG of the photo and its heat map, if there is one.
    """
    order = np.argsort(-probabilities, kind="stable")
    first = int(order[0])
    parts = []
    if picture is not None:
        alt = f"The photo, and a heat map of what speaks for {classes.titles[first]}"
        parts.append(f'<img alt="{escape(alt)}" src="{_source(picture)}">')
    if percentile is not None and percentile > flagged_above:
        parts.append(
            f'<p class="flag"><b>Unlike the training images.</b> {_more_alike(percentile)}, so '
            "that what is said here may mean nothing.</p>"
        )
    title, share = escape(classes.titles[first]), _percent(probabilities[first])
    parts.append(f'<p class="first">Most likely: <b>{title}</b>, {share}</p>')
    rows = (
        f"<li><span>{escape(classes.titled(label))}</span>"
        f'<i><u style="width:{100 * float(probabilities[label]):.1f}%"></u></i>'
        f"<b>{_percent(probabilities[label])}</b></li>"
        for label in map(int, order)
    )
    parts.append(f"<ol>{''.join(rows)}</ol>")
    notes = []
    if percentile is None:
        notes.append("How like the training images the photo is, this run cannot say.")
    elif percentile <= flagged_above:
        notes.append(f"{_more_alike(percentile)}: the photo is not unusual.")
    notes.append(
        "The probabilities are calibrated on validation images."
        if calibrated
        else "The probabilities are not calibrated, and may be too sure."
    )
    parts.append(f'<p class="small">{" ".join(notes)}</p>')
    return f'<div class="answer">{"".join(parts)}</div>'


def pictures(images: np.ndarray, caption: str, *, walk: bool = False) -> str:
    """Images uint8 [N, S, S, 3] side by side, with a caption; a walk keeps to rows of 8 or 4."""
    shown = "".join(
        f'<img alt="{escape(caption)}, {number}" src="{_source(_png(image))}">'
        for number, image in enumerate(images, start=1)
    )
    kind = "drawn walk" if walk else "drawn"
    return f'<div class="{kind}"><p class="small">{escape(caption)}</p><div>{shown}</div></div>'


def problem(message: str) -> str:
    """A sentence about what went wrong."""
    return f'<p class="problem" role="alert">{escape(message)}</p>'


def _more_alike(percentile: float) -> str:
    share = "All" if percentile >= 100 else f"{np.floor(percentile):.0f}%"
    return f"{share} of the validation images are more like the training images"


def _percent(share: float) -> str:
    """Such as "62.3%"; what is not 0 is never said to be 0."""
    return "&lt;0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def _source(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
