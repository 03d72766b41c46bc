"""A page in the browser, made with Gradio: photos to probabilities, generators to images.

Nothing is kept: an upload is deleted as soon as it is read, and answers are written into the page.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np

from skin_jax.api import Run
from skin_jax.base.errors import UserError
from skin_jax.data import images as images_lib
from skin_jax.eval import familiarity
from skin_jax.report import answer, heatmap

MAX_IMAGES = 32
"""Images that may be drawn at once."""

_MAX_SEED = 2**32 - 1
_WAITING = 100  # requests in the queue
_SESSIONS = 200  # of which the last photo is remembered, at the size that the networks see
_REMEMBERED_SECONDS = 1800
_SWEEP_SECONDS = 60  # for uploads that nobody asked about

_NOTE = (
    "For research only: this is no medical device and gives no diagnosis. Photos are deleted as "
    "soon as they are read."
)
_NONE = ""  # in the place of a class: none has this name
_STYLE = """
.gradio-container, .gradio-container > main { width: 100% !important;
  max-width: 64rem !important; margin: 0 auto !important; }
.gradio-container input[role=combobox] { text-overflow: ellipsis; padding-right: 1.8rem; }
.title h1 { font-size: 1.5rem; font-weight: 600; margin: 0; }
.title p { margin: .2rem 0 0; opacity: .75; }
@media (max-width: 40rem) { .gradio-container > main, .gradio-container .fillable {
  padding-left: .6rem !important; padding-right: .6rem !important; } }
"""
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]


class _Reader(NamedTuple):
    """A run that classifies, and what else it can say."""

    run: Run
    calibrated: bool
    reference: bool
    explains: bool

    @classmethod
    def of(cls, run: Run) -> "_Reader":
        """Asks the run, and compiles its programs: the first visitor does not wait for that."""
        found = cls(run, *(run.can(what) for what in ("calibrated", "unlikeness", "explain")))
        found.answer(np.zeros((run.image_size, run.image_size, 3), np.uint8))
        return found

    def answer(self, pixels: np.ndarray) -> str:
        """The piece of HTML about an image uint8 [S, S, 3]."""
        run = self.run
        probabilities = run.predict(pixels, calibrated=self.calibrated)[0]
        first = int(probabilities.argmax())
        picture = None
        if self.explains:
            caption = f"{run.classes.titles[first]}: what speaks for it"
            picture = heatmap.overlay(pixels, [*run.explain(pixels, [first])], caption)
        return answer.answer(
            run.classes,
            probabilities,
            calibrated=self.calibrated,
            percentile=float(run.unlikeness(pixels)[0]) if self.reference else None,
            flagged_above=familiarity.FLAGGED_ABOVE,
            picture=picture,
        )


def serve(runs: Mapping[str, Run], host: str, port: int, max_megabytes: int) -> None:
    """Serves the page until the process is asked to end, by Ctrl-C or SIGTERM.

    Args:
      runs: name -> run.
      host: address to listen at.
      port: of that address; nobody listens there.
      max_megabytes: largest upload.

    Raises:
      UserError: a run that has no checkpoint.
    """
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    page = build(runs)
    page.queue(max_size=_WAITING)
    page.launch(
        server_name=host,
        server_port=port,
        max_file_size=max_megabytes * 2**20,
        state_session_capacity=_SESSIONS,
        theme=_theme(),
        css=answer.STYLE + _STYLE,
        footer_links=[],
        prevent_thread_lock=True,
        show_error=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
    )
    print(f"the page: {page.local_url} (Ctrl-C ends it)", flush=True)
    try:
        ended.wait()
    finally:
        page.close(verbose=False)


def build(runs: Mapping[str, Run]) -> gr.Blocks:
    """The page of runs that classify or generate, by name."""
    readers = {name: _Reader.of(run) for name, run in runs.items() if run.can("predict")}
    generators = {name: run for name, run in runs.items() if run.can("generate")}
    parts: list[tuple[str, Callable[[], None]]] = []
    if readers:
        parts.append(("A photo", lambda: _photo(readers)))
    if generators:
        parts.append(("Generated images", lambda: _generated(generators)))
    with gr.Blocks(
        title="skin_jax", analytics_enabled=False, delete_cache=(_SWEEP_SECONDS, _SWEEP_SECONDS)
    ) as page:
        gr.HTML(f"<h1>Skin lesions</h1><p>{_NOTE}</p>", elem_classes="title")
        if len(parts) == 1:
            parts[0][1]()
        else:
            for title, part in parts:
                with gr.Tab(title):
                    part()
    return page


def _theme() -> gr.themes.Base:
    """Fonts that every system has, for nothing may be fetched; white on a teal that reads well."""
    theme = gr.themes.Default(primary_hue="teal", font=_FONTS, font_mono=["monospace"])
    return theme.set(color_accent="*primary_700", button_primary_background_fill="*primary_700")


def _in_turn(queue: str) -> dict[str, Any]:
    """Options of an event that waits until the others of its queue are done."""
    return {"concurrency_id": queue, "concurrency_limit": 1, "show_progress": "minimal"}


def _choice_of(runs: Mapping[str, Any]) -> gr.Dropdown:
    names = list(runs)
    return gr.Dropdown(names, value=names[0], label="Run", filterable=False, visible=len(names) > 1)


def _photo(readers: Mapping[str, _Reader]) -> None:
    """The part that answers about a photo."""
    sizes = {reader.run.image_size for reader in readers.values()}

    def look(name: str, upload: dict[str, Any] | None) -> tuple[Any, ...]:
        """Reads an upload, deletes it, and answers; the place for uploads is empty again."""
        if upload is None:
            return (gr.skip(),) * 3
        file = Path(upload["path"])  # Gradio has checked that it is an upload
        try:
            content = file.read_bytes()
            seen = {size: images_lib.decode(content, size) for size in sizes}
        except (images_lib.UnreadableImage, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            sentence = f"This file cannot be read as an image: {reason}."
            return None, None, answer.problem(sentence)
        finally:
            file.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                file.parent.rmdir()  # it has the photo's hash for a name
        return None, seen, look_again(name, seen)

    def look_again(name: str, seen: dict[int, np.ndarray] | None) -> str:
        if seen is None:
            return ""
        reader = readers[name]
        return reader.answer(seen[reader.run.image_size])

    seen = gr.State(None, time_to_live=_REMEMBERED_SECONDS)
    with gr.Row():
        with gr.Column(min_width=280):
            name = _choice_of(readers)
            photo = gr.Image(
                label="Photo",
                type="filepath",
                sources=["upload", "webcam", "clipboard"],
                webcam_options=gr.WebcamOptions(
                    mirror=False, constraints={"video": {"facingMode": "environment"}}
                ),
                placeholder="Drop a photo here, or click to choose one",
                buttons=[],
                height=240,
                elem_id="photo",
            )
        with gr.Column(min_width=280, scale=2):
            shown = gr.HTML(elem_id="answer")
    together = _in_turn("photo")
    # Gradio's own reading of the file has no limits, and its errors are no sentences.
    photo.input(
        look, [name, photo], [photo, seen, shown], preprocess=False, api_name="look", **together
    )
    name.input(look_again, [name, seen], shown, api_name="look_again", **together)


def _generated(runs: Mapping[str, Run]) -> None:
    """The part that draws images."""

    def drawn(run: str, label: str, count: float, seed: float) -> str:
        chosen = _label(label)
        try:
            images = runs[run].generate(chosen, int(count), int(seed or 0))
        except UserError as error:
            return answer.problem(f"{error}.")
        return answer.pictures(images, f"Generated: {_titled(runs[run], chosen)}")

    def walked(run: str, label: str, to: str, seed: float) -> str:
        start, end = _label(label), None if to == label else _label(to)
        try:
            images = runs[run].walk(start, end, int(seed or 0))
        except UserError as error:
            return answer.problem(f"{error}.")
        where = "another image of it" if end is None else _titled(runs[run], end)
        caption = f"From {_titled(runs[run], start)} to {where}"
        return answer.pictures(images, caption, walk=True)

    def choices(run: str) -> tuple[gr.Dropdown, gr.Dropdown]:
        labels, ends = _labels(runs[run]), _ends(runs[run])
        return (
            gr.Dropdown(choices=labels, value=labels[0][1]),
            gr.Dropdown(choices=ends, value=ends[-1][1]),
        )

    first = next(iter(runs.values()))
    with gr.Row():
        with gr.Column(min_width=280):
            run = _choice_of(runs)
            labels, ends = _labels(first), _ends(first)
            label = gr.Dropdown(labels, value=labels[0][1], label="Class", filterable=False)
            count = gr.Slider(1, MAX_IMAGES, value=16, step=1, label="Images")
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=_MAX_SEED)
            draw = gr.Button("Draw images", variant="primary", elem_id="draw")
            to = gr.Dropdown(ends, value=ends[-1][1], label="Walk to", filterable=False)
            walk = gr.Button("Walk there in eight steps", elem_id="walk")
        with gr.Column(min_width=280, scale=2):
            shown = gr.HTML(elem_id="drawn")
    together = _in_turn("draw")
    run.input(choices, run, [label, to], api_name="choices", show_progress="hidden")
    draw.click(drawn, [run, label, count, seed], shown, api_name="draw", **together)
    walk.click(walked, [run, label, to, seed], shown, api_name="walk", **together)


def _labels(run: Run) -> list[tuple[str, str]]:
    """What can be drawn: as people call it, and its name."""
    return [(_titled(run, name), name or _NONE) for name in run.generates]


def _ends(run: Run) -> list[tuple[str, str]]:
    """Where a walk can lead."""
    return [("another image of the same class", _NONE), *(_labels(run) if run.can("walk") else ())]


def _label(chosen: str) -> str | None:
    return None if chosen == _NONE else chosen


def _titled(run: Run, name: str | None) -> str:
    return "as they come" if name is None else run.classes.titled(run.classes.index(name))
