"""Trackers: where a run can be watched, next to its `metrics.jsonl`; each a few functions.

A tracker that cannot be opened is named before training; one that fails later is named and left
out, and the run goes on without it.
"""

import importlib.util
import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from skin_jax.base import folder
from skin_jax.base.errors import UserError, first_line, warn
from skin_jax.base.files import write_json
from skin_jax.config import NO_TRACKER

FILE_NAME = "tracker.json"
"""In a work folder: tracker -> the id of the run there, which a resumed run continues."""

TENSORBOARD = "tensorboard"
_PROJECT = "skin_jax"
_BINS = 30
_PARAMETERS_AT_ONCE, _PARAMETER_LENGTH = 100, 500  # limits of MLflow


class Tracker:
    """What a run reports to; this one keeps nothing."""

    def settings(self, values: Mapping[str, Any]) -> None:
        """The settings of the run, once a start."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars after `step` steps; they may be not finite."""

    def picture(self, name: str, step: int, path: Path) -> None:
        """A picture of many images: a PNG."""

    def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Values float [N] of each name; they may be not finite."""

    def results(self, step: int, values: Mapping[str, float]) -> None:
        """The figures at the end, of the checkpoint of `step`."""

    def close(self, *, completed: bool) -> None:
        """Ends the report; a run that is not `completed` may be resumed."""


class Opening(NamedTuple):
    """What a tracker is opened for: the work folder, and the id of a run that it continues."""

    workdir: Path
    id: str | None


class TensorBoard(Tracker):
    """Events in `tensorboard/` of the work folder; each start has a file of its own.

    They are written with TensorBoard's own record writer, which needs no TensorFlow.
    """

    def __init__(self, workdir: Path):
        """Opens a new file of events."""
        events = workdir / TENSORBOARD
        events.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._events = RecordWriter((events / name).open("wb"))
        self._write(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))

    def settings(self, values: Mapping[str, Any]) -> None:
        """A table of text."""
        rows = "".join(f"| {key} | {value} |\n" for key, value in values.items())
        text = tensor_pb2.TensorProto(
            dtype=types_pb2.DT_STRING,
            tensor_shape=tensor_shape_pb2.TensorShapeProto(),
            string_val=[f"| setting | value |\n|---|---|\n{rows}".encode()],
        )
        plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="text")
        metadata = summary_pb2.SummaryMetadata(plugin_data=plugin)
        self._summary(0, [{"tag": "settings", "tensor": text, "metadata": metadata}])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One point of each curve."""
        self._summary(step, [{"tag": tag, "simple_value": v} for tag, v in values.items()])

    def picture(self, name: str, step: int, path: Path) -> None:
        """The file as it is."""
        with Image.open(path) as opened:
            width, height = opened.size
        image = summary_pb2.Summary.Image(
            width=width, height=height, colorspace=3, encoded_image_string=path.read_bytes()
        )
        self._summary(step, [{"tag": name, "image": image}])

    def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Bins of equal width from the least to the greatest value."""
        found = []
        for tag, given in _finite_arrays(values).items():
            counts, edges = np.histogram(given, _BINS)
            histogram = summary_pb2.HistogramProto(
                min=given.min(),
                max=given.max(),
                num=given.size,
                sum=given.sum(),
                sum_squares=np.square(given).sum(),
                bucket_limit=edges[1:],
                bucket=counts,
            )
            found.append({"tag": tag, "histo": histogram})
        self._summary(step, found)

    def results(self, step: int, values: Mapping[str, float]) -> None:
        """A point of a curve each."""
        self.scalars(step, values)

    def close(self, *, completed: bool) -> None:
        """Closes the file."""
        self._events.close()

    def _summary(self, step: int, values: list[dict[str, Any]]) -> None:
        summary = summary_pb2.Summary(value=[summary_pb2.Summary.Value(**each) for each in values])
        self._write(event_pb2.Event(wall_time=time.time(), step=step, summary=summary))

    def _write(self, event: event_pb2.Event) -> None:
        self._events.write(event.SerializeToString())
        self._events.flush()


class _Logged(Tracker):
    """Weights & Biases, or what has its interface."""

    def __init__(self, module: Any, report: Callable[[int, dict[str, Any]], None]):
        """Takes the package, and what reports values of a step."""
        self._module, self._report = module, report

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One point of each curve."""
        self._report(step, _finite(values))

    def picture(self, name: str, step: int, path: Path) -> None:
        """Uploaded, or copied."""
        self._report(step, {name: self._module.Image(str(path))})

    def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Counted by the package."""
        shown = _finite_arrays(values)
        self._report(step, {k: self._module.Histogram(v.tolist()) for k, v in shown.items()})

    def results(self, step: int, values: Mapping[str, float]) -> None:
        """In the summary of the run."""
        self._report(step, _finite(values))

    def close(self, *, completed: bool) -> None:
        """Waits until everything is sent, for some time."""
        self._module.finish()


def _open_tensorboard(opening: Opening) -> tuple[Tracker, str | None]:
    return TensorBoard(opening.workdir), None


def _open_wandb(opening: Opening) -> tuple[Tracker, str | None]:
    import wandb

    run_id = opening.id or uuid.uuid4().hex[:8]
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", _PROJECT),
        id=run_id,
        name=opening.workdir.absolute().name,
        dir=str(opening.workdir),
        resume="allow",
        settings=wandb.Settings(
            console="off",
            silent=True,
            init_timeout=60,
            finish_timeout=300,  # without a network it would wait for ever
            finish_timeout_raises=False,
        ),
    )
    # Steps of its own could not be written again by a run that is resumed from an earlier one.
    run.define_metric("step")
    run.define_metric("*", step_metric="step")

    class Wandb(_Logged):
        def settings(self, values: Mapping[str, Any]) -> None:
            run.config.update(dict(values), allow_val_change=True)

        def results(self, step: int, values: Mapping[str, float]) -> None:
            run.summary.update({"final/step": step, **_finite(values)})

    return Wandb(wandb, lambda step, values: run.log({"step": step, **values})), run_id


def _open_trackio(opening: Opening) -> tuple[Tracker, str | None]:
    import trackio

    # Runs are continued by their names.
    run_id = opening.id or f"{opening.workdir.absolute().name}-{uuid.uuid4().hex[:8]}"
    run = trackio.init(
        project=os.environ.get("TRACKIO_PROJECT", _PROJECT),
        name=run_id,
        resume="allow",
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )

    class Trackio(_Logged):
        def settings(self, values: Mapping[str, Any]) -> None:
            table = "".join(f"| {key} | {value} |\n" for key, value in values.items())
            text = f"| setting | value |\n|---|---|\n{table}"
            run.log({"settings": trackio.Markdown(text)}, step=0)

    return Trackio(trackio, lambda step, values: run.log(values, step=step)), run_id


def _open_mlflow(opening: Opening) -> tuple[Tracker, str | None]:
    # Its own defaults repeat a request for minutes, in which training would stand still.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client, fresh = MlflowClient(), opening.id is None
    if opening.id is None:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        known = client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else client.create_experiment(name)
        run_name = opening.workdir.absolute().name
        run_id = str(client.create_run(experiment, run_name=run_name).info.run_id)
    else:
        run_id = opening.id
        client.update_run(run_id, status="RUNNING")

    class Mlflow(Tracker):
        def settings(self, values: Mapping[str, Any]) -> None:
            client.log_dict(run_id, {k: str(v) for k, v in values.items()}, "settings.json")
            if fresh:  # parameters may not change: a resumed run can be longer
                found = [Param(k, str(v)[:_PARAMETER_LENGTH]) for k, v in values.items()]
                for start in range(0, len(found), _PARAMETERS_AT_ONCE):
                    client.log_batch(run_id, params=found[start : start + _PARAMETERS_AT_ONCE])

        def scalars(self, step: int, values: Mapping[str, float]) -> None:
            now = int(time.time() * 1000)
            metrics = [Metric(key, value, now, step) for key, value in _finite(values).items()]
            client.log_batch(run_id, metrics=metrics)

        def picture(self, name: str, step: int, path: Path) -> None:
            client.log_artifact(run_id, str(path), name)

        def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
            bins = {key: np.histogram(v, _BINS) for key, v in _finite_arrays(values).items()}
            content = {
                key: {"counts": counts.tolist(), "edges": edges.tolist()}
                for key, (counts, edges) in bins.items()
            }
            client.log_dict(run_id, content, f"histograms/step_{step}.json")

        def results(self, step: int, values: Mapping[str, float]) -> None:
            self.scalars(step, values)

        def close(self, *, completed: bool) -> None:
            client.set_terminated(run_id, "FINISHED" if completed else "KILLED")

    return Mlflow(), run_id


TRACKERS: dict[str, Callable[[Opening], tuple[Tracker, str | None]]] = {
    TENSORBOARD: _open_tensorboard,
    "wandb": _open_wandb,
    "trackio": _open_trackio,
    "mlflow": _open_mlflow,
}
"""Name -> what opens the tracker, with the id to continue it by."""


def check(name: str) -> None:
    """Refuses a tracker whose package is not installed."""
    if name != NO_TRACKER and importlib.util.find_spec(name) is None:
        raise UserError(
            f"config.log.tracker is {name!r}, but its package is not installed; pip install "
            f"'skin_jax[{name}]', or leave it out"
        )


class _Several(Tracker):
    """Reports to all of some; one that fails is named, and left out from then on."""

    def __init__(self, trackers: Mapping[str, Tracker]):
        self._open = dict(trackers)

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                call(tracker)
            except Exception as error:  # of any kind: no tracker may end a run
                del self._open[name]
                warn(
                    f"the tracker {name} failed ({first_line(error)}); the run goes on without it, "
                    "and metrics.jsonl has all figures"
                )

    def settings(self, values: Mapping[str, Any]) -> None:
        self._each(lambda tracker: tracker.settings(values))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._each(lambda tracker: tracker.scalars(step, values))

    def picture(self, name: str, step: int, path: Path) -> None:
        self._each(lambda tracker: tracker.picture(name, step, path))

    def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        self._each(lambda tracker: tracker.histograms(step, values))

    def results(self, step: int, values: Mapping[str, float]) -> None:
        self._each(lambda tracker: tracker.results(step, values))

    def close(self, *, completed: bool) -> None:
        self._each(lambda tracker: tracker.close(completed=completed))


def start(workdir: Path, *, tensorboard: bool, tracker: str) -> Tracker:
    """Opens the trackers of a run, new or resumed.

    Args:
      workdir: of the run.
      tensorboard: whether to write events for TensorBoard.
      tracker: one more, of `TRACKERS`, or NO_TRACKER.

    Returns:
      One that reports to all of them, and never fails.

    Raises:
      UserError: one that cannot be opened.
    """
    path = workdir / FILE_NAME
    known: dict[str, str] = {}
    if path.exists():
        known = folder.read_record(path, dict, "delete it to begin new runs at the trackers")
    opened: dict[str, Tracker] = {}
    for name in [TENSORBOARD] * tensorboard + [tracker] * (tracker != NO_TRACKER):
        try:
            opened[name], run_id = TRACKERS[name](Opening(workdir, known.get(name)))
        except Exception as error:  # of a package of others, or of its network
            raise UserError(
                f"the tracker {name} cannot be opened ({first_line(error)}); training has not "
                "begun: solve this, or run the same command without --config.log.tracker"
            ) from None
        if run_id is not None and run_id != known.get(name):
            known[name] = run_id
            write_json(path, known)
    return _Several(opened)


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {key: float(value) for key, value in values.items() if np.isfinite(value)}


def _finite_arrays(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The finite values as float64, without the names that have none."""
    found = {key: np.asarray(v, np.float64)[np.isfinite(v)] for key, v in values.items()}
    return {key: finite for key, finite in found.items() if finite.size}
