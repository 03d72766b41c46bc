"""Everything worth knowing on a machine with a GPU or a TPU, in minutes.

python -m benchmarks.first_light [--out first_light] [--seconds 480] [--only NAME,...] [--tiny]

Sections, in this order: machine (what a matrix product and a copy reach), smoke (a run of each
task), parity (losses of ten steps, probabilities and images beside the CPU's), throughput (the rows
of `benchmarks.steps`, and their shares of what the machine reaches), resume (the same bits after a
restart), bf16 (losses beside those of float32), torch (the same rows beside PyTorch's), waiting
(for data), memory, augmentation, trace.

DIR/results.json and DIR/results.md are written after every figure, so that they are there when the
program is cut off; log.txt has what the sections print, trace/ the trace. The sections run in
another process, each with its share of the time that is left: one that takes longer, or ends the
process, is written down as failed, and the others follow in a new process. The status is 1 where a
section failed or there was no time for it.

--tiny makes everything so small that it ends on two CPU cores in minutes: a rehearsal, whose
figures mean nothing. It is chosen where JAX finds nothing but a CPU, unless --tiny=no.
"""

import argparse
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, NamedTuple

from benchmarks import tables
from skin_jax.base.errors import UserError
from skin_jax.base.files import write_atomically
from skin_jax.base.folder import check_own

# What measures is imported in the other process: whatever fails there is written down here.

Row = dict[str, Any]

_ROOT = Path(__file__).parents[1]
_STEPS = 10
_GRACE_SECONDS = 5.0  # of a section that is late, to end by itself

_TOLERANCE = 1e-3
"""Of losses (relative) and of probabilities and images (absolute) beside the CPU's."""

_PROGRAM = ("-m", "benchmarks.first_light")
_OPERATIONS = 12  # of the trace, the longest ones


class Settings(NamedTuple):
    """What the sections are told.

    out is where results lie, tiny whether all is, rounds those of a timing; a section should begin
    nothing after its deadline, in seconds since the epoch.
    """

    out: Path
    tiny: bool
    rounds: int
    deadline: float = float("inf")


class Section(NamedTuple):
    """A section: its rows, and its share of the time beside the others'."""

    rows: Callable[[Settings], Iterator[Row]]
    weight: float


def machine(settings: Settings) -> Iterator[Row]:
    """What the machine is, and what it reaches."""
    import jax
    import jax.numpy as jnp

    from benchmarks import timing

    found = timing.machine()
    yield {"name": "machine", **found["machine"], "devices": len(jax.devices())}
    yield {"name": "versions", "date": found["date"], **found["versions"]}
    for name, dtype in (("float32", jnp.float32), ("bf16", jnp.bfloat16)):
        yield {"name": f"matrix product, {name}", "gflops": timing.peak_gflops(dtype)}
    yield {"name": "copy", "gbytes_per_second": timing.peak_gbytes()}


def smoke(settings: Settings) -> Iterator[Row]:
    """A run of each task to its report, and what it predicts or draws afterwards."""
    import shutil

    import numpy as np

    import skin_jax
    from skin_jax import tasks
    from skin_jax.training.run import trained

    def used(folder: Path) -> str:
        run = skin_jax.load(folder)
        done = []
        if run.can("predict"):
            images = np.zeros((3, run.image_size, run.image_size, 3), np.uint8)
            np.testing.assert_allclose(run.predict(images).sum(axis=1), 1.0, atol=1e-3)
            done.append("predicts")
        if run.can("generate"):
            # Told a class or not: whichever the task's generator takes.
            task = trained(folder).task
            label = int(task.classes_drawn(len(run.classes))[0]) if task.conditional else None
            assert run.generate(label, 2).std() > 0
            done.append("generates")
        return ", ".join(done)

    for name in _in_time(tasks.TASKS, settings):
        folder = _work_folder(settings, name)
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier call
        start = time.perf_counter()
        skin_jax.train(_smoke_config(name, settings), folder)
        seconds = time.perf_counter() - start
        yield {"name": name, "steps": _STEPS, "seconds": seconds, "then": used(folder)}


def parity(settings: Settings) -> Iterator[Row]:
    """Losses of ten steps, probabilities and images, beside those of the CPU.

    The weights are the CPU's. With `highest` the device multiplies in float32; by default it may
    round the factors first (TF32, or bf16 on a TPU), which is no fault.
    """
    import jax
    import numpy as np

    from benchmarks import steps
    from skin_jax import tasks

    cpu, device = jax.devices("cpu")[0], jax.devices()[0]
    precisions = ("highest",) if device == cpu else ("highest", "default")
    for name in _in_time(tasks.TASKS, settings):
        config = _smoke_config(name, settings)
        reference = steps.OurStep(config, cpu)
        first = jax.device_get(reference.state)
        expected = _losses(reference)
        last = jax.device_get(reference.state)
        outputs = _outputs(reference, last, cpu)
        row: Row = {"name": name, "tolerance": _TOLERANCE}
        for precision in precisions:
            with jax.default_matmul_precision(None if precision == "default" else precision):
                ours = steps.OurStep(config, device)
                ours.state = jax.device_put(first, device)
                row[f"losses_{precision}"] = _difference(_losses(ours), expected)
                for key, values in _outputs(ours, last, device).items():
                    row[f"{key}_{precision}"] = float(np.abs(values - outputs[key]).max())
        exact = [value for key, value in row.items() if key.endswith("_highest")]
        yield row | {"ok": all(value <= _TOLERANCE for value in exact)}  # NaN is not


def throughput(settings: Settings) -> Iterator[Row]:
    """Our steps, in both precisions, and their shares of what the machine reaches."""
    from benchmarks import steps

    for name in _in_time(steps.NAMES, settings):
        for precision in ("bf16", "float32"):
            yield from _each(
                f"{name}, {precision}",
                lambda name=name, precision=precision: steps.rows(
                    settings.rounds, [name], precision, variants=()
                ),
            )


def resume(settings: Settings) -> Iterator[Row]:
    """A run of each task that goes on from its half ends at the same bits."""
    import shutil

    import skin_jax
    from skin_jax import tasks

    def digest(folder: Path) -> str:
        content = (folder / f"checkpoints/{_STEPS}/digest/metadata").read_text()
        return str(json.loads(content)["blake2b"])

    for name in _in_time(tasks.TASKS, settings):
        whole, half = _work_folder(settings, name), _work_folder(settings, f"{name}_resumed")
        if not (whole / f"checkpoints/{_STEPS}").exists():
            yield {"name": name, "ok": False, "failure": "its smoke run did not end"}
            continue
        shutil.rmtree(half, ignore_errors=True)
        shutil.copytree(whole, half)
        shutil.rmtree(half / f"checkpoints/{_STEPS}")
        skin_jax.train(_smoke_config(name, settings), half)
        steps = sorted(int(path.name) for path in (half / "checkpoints").glob("[0-9]*"))
        yield {
            "name": name,
            "from_step": steps[0],
            "to_step": steps[-1],
            "ok": digest(whole) == digest(half),
        }


def bf16(settings: Settings) -> Iterator[Row]:
    """Losses of ten steps in bf16, beside those in float32 of the same device."""
    from benchmarks import steps
    from skin_jax import tasks

    for name in _in_time(tasks.TASKS, settings):
        config = _smoke_config(name, settings)
        found = {}
        for precision in ("float32", "bf16"):
            config.precision = precision
            found[precision] = _losses(steps.OurStep(config))
        firsts = ({key: values[:1] for key, values in each.items()} for each in found.values())
        yield {
            "name": name,
            "first_step": _difference(*firsts),
            "ten_steps": _difference(found["bf16"], found["float32"]),
            "finite": all(value == value for each in found["bf16"].values() for value in each),
        }


def torch(settings: Settings) -> Iterator[Row]:
    """Our steps beside PyTorch's, in the precision that suits the device."""
    import importlib.util

    import jax

    from benchmarks import steps

    if importlib.util.find_spec("torch") is None:
        yield {"name": "torch", "failure": "PyTorch is not installed"}
        return
    precision = "float32" if jax.default_backend() == "cpu" else "bf16"
    for name in _in_time(steps.NAMES, settings):
        # A rehearsal compiles once: C++ compilers take longer than all the rest.
        compiles = not settings.tiny or name == steps.NAMES[0]
        variants = ("channels_last", *["compile"] * compiles)
        yield from _each(
            f"{name}, {precision}",
            lambda name=name, variants=variants: steps.rows(
                settings.rounds, [name], precision, variants=variants
            ),
        )


def waiting(settings: Settings) -> Iterator[Row]:
    """How long a training step waits for its images."""
    from benchmarks import feeding

    yield from feeding.rows(settings.rounds, ("device",), "float32")


def memory(settings: Settings) -> Iterator[Row]:
    """Memory of each compiled step, by its compiler, and the most that this process has had."""
    import jax

    from benchmarks import steps

    for name in _in_time(steps.NAMES, settings):
        ours = steps.OurStep(steps.config_of(name, "bf16"))
        yield {"name": name, "images": len(ours.batch["label"]), **ours.memory_mb()}
    found = jax.devices()[0].memory_stats() or {}
    sizes = {"limit_mb": found.get("bytes_limit"), "peak_mb": found.get("peak_bytes_in_use")}
    mb = {key: value and value / 1e6 for key, value in sizes.items()}
    yield {"name": "device", **mb}


def augmentation(settings: Settings) -> Iterator[Row]:
    """The augmentation of the SGAN, beside its step."""
    from benchmarks import augmentation as suite

    yield from suite.rows(settings.rounds, suite.NAMES, "float32")


def trace(settings: Settings) -> Iterator[Row]:
    """A trace of some steps of the SGAN, and what takes longest in it."""
    import jax

    from benchmarks import steps

    ours = steps.OurStep(steps.config_of(steps.NAMES[0], "bf16"))
    ours.run(2)
    folder = settings.out / "trace"
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(folder, profiler_options=options):
        ours.run(3)
    files = sorted(folder.rglob("*.trace.json.gz"))
    assert files, f"no trace in {folder}"
    yield {"name": steps.NAMES[0], "file": str(files[-1].relative_to(settings.out)), "steps": 3}
    yield from _longest(files[-1])


SECTIONS = {
    "machine": Section(machine, 3),
    "smoke": Section(smoke, 18),
    "parity": Section(parity, 16),
    "throughput": Section(throughput, 18),
    "resume": Section(resume, 10),
    "bf16": Section(bf16, 8),
    "torch": Section(torch, 20),
    "waiting": Section(waiting, 4),
    "memory": Section(memory, 5),
    "augmentation": Section(augmentation, 6),
    "trace": Section(trace, 4),
}


def _in_time(names: Iterable[str], settings: Settings) -> Iterator[str]:
    """The names, as long as there is time; a TimeoutError names those that are left."""
    left = list(names)
    while left:
        if time.time() > settings.deadline:
            raise TimeoutError(f"no time was left for {', '.join(left)}")
        yield left.pop(0)


def _smoke_config(name: str, settings: Settings) -> Any:
    """The smoke variant of a task's own configuration, for ten steps saved twice."""
    from skin_jax import config as config_lib
    from skin_jax.base.settings import flatten
    from skin_jax.data import demo
    from skin_jax.data.classes import HAM10000

    config = config_lib.load(f"{name}:smoke")
    chosen: dict[str, Any] = {
        "num_steps": _STEPS,
        "eval_every_steps": _STEPS // 2,
        "batch_size": 8,
        "data.demo_images": demo.MIN_IMAGES if settings.tiny else 400,
        "data.pipeline": "device",
        "sharding.num_devices": 1,
        "log.tensorboard": False,
        "log.every_steps": 1,
    }
    optional = {"score.images": 8, "optimizer.warmup_steps": 0}
    if settings.tiny:
        optional |= {"model.width": 4, "model.discriminator_width": 4, "model.noise_size": 8}
        optional |= {"model.width_multiplier": 0.1}
    flat = flatten(config)
    config.update_from_flattened_dict(
        chosen | {key: value for key, value in optional.items() if key in flat}
    )
    if "classes" in config:
        config.classes = HAM10000.names[: 2 if settings.tiny else None]
    return config


def _work_folder(settings: Settings, name: str) -> Path:
    return settings.out / "runs" / name


def _losses(ours: Any) -> dict[str, list[float]]:
    """The losses of ten steps, by their names; the mean over classes where there are several."""
    import numpy as np

    rows = [ours.once() for _ in range(_STEPS)]
    names = [key for key in rows[0] if key == "loss" or key.endswith("_loss")]
    return {key: [float(np.mean(row[key])) for row in rows] for key in names}


def _difference(found: dict[str, list[float]], expected: dict[str, list[float]]) -> float:
    """The largest relative difference of losses."""
    import numpy as np

    pairs = [(np.array(found[key]), np.array(expected[key])) for key in expected]
    return float(np.max([np.abs(a - b).max() / max(np.abs(b).max(), 1e-6) for a, b in pairs]))


def _outputs(ours: Any, state: Any, device: Any) -> dict[str, Any]:
    """Probabilities and images of a state on a device, of what its task can do."""
    import jax
    import numpy as np

    from skin_jax import tasks
    from skin_jax.base import devices

    task, state = ours.task, jax.device_put(state, device)
    options = devices.compiler_options(device.platform)
    found = {}
    if tasks.can(task, "predict"):
        images = jax.device_put(ours.batch["image"], device)
        predict = jax.jit(task.predict, compiler_options=options)
        found["probabilities"] = np.asarray(predict(state, images))
    if tasks.can(task, "images_of"):
        label = int(task.classes_drawn(7)[0])
        with jax.default_device(device):
            keys = jax.random.split(jax.random.key(1), 4)
        draw = jax.jit(
            lambda generators, keys: task.images_of(generators, label, task.noise(keys)),
            compiler_options=options,
        )
        found["images"] = np.asarray(draw(task.generators(state), keys))
    return found


def _each(name: str, rows: Callable[[], Iterator[Row]]) -> Iterator[Row]:
    """The rows under a name of theirs, or why there are none: the next ones may do better."""
    try:
        for row in rows():
            yield {**row, "name": name}
    except Exception as error:  # of a compiler, of memory
        traceback.print_exc()
        yield {"name": name, "ok": False, "failure": _first_line(error)}


def _longest(path: Path) -> Iterator[Row]:
    """What takes longest in a trace, by its name; on a device, where the trace has any."""
    import collections
    import gzip

    with gzip.open(path, "rt") as file:
        events = json.load(file)["traceEvents"]
    names = {
        event["pid"]: event["args"]["name"]
        for event in events
        if event.get("ph") == "M" and event.get("name") == "process_name"
    }
    on_device = {pid for pid, name in names.items() if "/device:" in name}
    total: collections.Counter[str] = collections.Counter()
    for event in events:
        if event.get("ph") == "X" and (not on_device or event["pid"] in on_device):
            total[event["name"]] += event.get("dur", 0) / 1e3
    for name, ms in total.most_common(_OPERATIONS):
        yield {"name": name[:80], "ms": ms}


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


# The process that measures


def _shrink() -> None:
    """Makes the rows of the benchmark tiny, in this process."""
    import functools

    from benchmarks import parity as networks
    from benchmarks import steps, timing
    from skin_jax.models.efficientnet_lite import EfficientNetLite, Stage
    from skin_jax.tasks import projected

    networks.SIZES = {
        key: {False: each[True], True: each[True]} for key, each in networks.SIZES.items()
    }
    timing._ROUND_SECONDS, timing._PEAK_REPEATS = 0.02, 2
    timing._SIDE = timing._SIDE_ON_CPU = 256
    timing._COPIED = 2**20
    for name, make in list(steps.CONFIGS.items()):
        steps.CONFIGS[name] = functools.partial(_shrunk, make)
    # What the projected GAN's discriminators see through compiles for half a minute.
    projected.efficientnet_lite.lite = lambda _, num_classes, **settings: EfficientNetLite(
        num_classes,
        stages=tuple(Stage(1, features, 1, 3, 2) for features in (8, 16)),
        stem_features=4,
        last_features=8,
        **settings,
    )


def _shrunk(make: Callable[[], Any]) -> Any:
    config = make()
    config.batch_size, config.data.image_size = 2, 32
    if config.task == "classifier":
        config.model.network = _tiny_network(config.model.name)
    else:
        config.model.width = 4
    if "classes" in config:
        config.classes = config.classes[:2]
    return config


def _tiny_network(name: str) -> Callable[..., Any]:
    """Makes networks of the tiny sizes of `benchmarks.parity`, of any number of classes."""
    from benchmarks import parity as networks
    from benchmarks.steps import _TORCH_NETWORKS

    tiny = networks.jax_network(_TORCH_NETWORKS[name], True)

    def make(num_classes: int, dtype: Any, **_: Any) -> Any:
        return tiny.clone(num_classes=num_classes, dtype=dtype)

    return make


def measure(names: Sequence[str], settings: Settings, until: float) -> None:
    """Runs sections and says on stdout, a line of JSON each, what begins, is found and fails."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the sections print has a place of its own

    def say(**what: Any) -> None:
        channel.write(json.dumps(what) + "\n")
        channel.flush()

    if settings.tiny:
        _shrink()
    for place, name in enumerate(names):
        weights = [SECTIONS[each].weight for each in names[place:]]
        left = until - time.time()
        limit = left * weights[0] / sum(weights)
        if limit < 1.0:
            say(section=name, end="no time was left", cpu_seconds=0.0)
            continue
        say(section=name, limit=limit)
        failure, before = None, time.process_time()
        try:
            for row in SECTIONS[name].rows(settings._replace(deadline=time.time() + limit)):
                say(section=name, row=row)
        except Exception as error:
            traceback.print_exc()
            failure = _first_line(error)
        say(section=name, end=failure, cpu_seconds=time.process_time() - before)


# The process that writes down


class Results:
    """What is known of each section, in files that are written anew with every figure."""

    def __init__(self, out: Path, names: Sequence[str], facts: Row):
        self._out, self._facts = out, facts
        self.sections: dict[str, Row] = {
            name: {"status": "not begun", "rows": []} for name in names
        }
        self.write()

    def begin(self, name: str, limit: float) -> None:
        """Notes that a section begins."""
        self.sections[name] |= {"status": "running", "limit_s": limit, "began": time.time()}
        self.write()

    def add(self, name: str, row: Row) -> None:
        """Notes a row."""
        self.sections[name]["rows"].append(row)
        self.write()

    def end(self, name: str, failure: str | None, cpu_seconds: float | None = None) -> None:
        """Notes that a section has ended, and how; all threads count for the seconds."""
        section = self.sections[name]
        began = section.pop("began", None)
        section["seconds"] = began and time.time() - began
        section["cpu_seconds"] = cpu_seconds
        wrong = [row["name"] for row in section["rows"] if row.get("ok") is False]
        if failure is None and wrong:
            failure = f"not as it should be: {', '.join(wrong)}"
        section |= {"status": "failed" if failure else "ok", "failure": failure}
        print(f"{name}: {failure or 'ok'}", flush=True)
        self.write()

    @property
    def good(self) -> bool:
        """Whether all sections have ended well."""
        return all(section["status"] == "ok" for section in self.sections.values())

    def write(self) -> None:
        """Writes both files."""
        content = {**self._facts, "sections": self.sections}
        write_atomically(self._out / "results.json", json.dumps(content, indent=1) + "\n")
        lines = ["# First light", ""]
        lines += [f"{key}: {value}  " for key, value in self._facts.items()]
        for name, section in self.sections.items():
            seconds = section.get("seconds")
            took = f" ({seconds:.0f} s)" if seconds else ""
            why = f": {section['failure']}" if section.get("failure") else ""
            lines += ["", f"## {name}", "", f"{section['status']}{took}{why}", ""]
            rows = section["rows"]
            if name == "machine":  # each row has other columns
                lines += [f"- {row['name']}: {_words(row)}" for row in rows]
            elif rows:
                lines.append(tables.table(rows))
        write_atomically(self._out / "results.md", "\n".join(lines) + "\n")


def _words(row: Row) -> str:
    return ", ".join(f"{key} {value}" for key, value in row.items() if key != "name")


def supervise(names: Sequence[str], settings: Settings, until: float, results: Results) -> None:
    """Has the sections measured by processes of their own, and writes down what they say."""
    left = list(names)
    while left:
        with (settings.out / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                [
                    *(sys.executable, *_PROGRAM, "--measure", str(until)),
                    *("--only", ",".join(left), "--out", str(settings.out)),
                    *(f"--tiny={'yes' if settings.tiny else 'no'}", f"--rounds={settings.rounds}"),
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                env=_environment(settings),
                start_new_session=True,
            )
        assert process.stdout is not None
        lines: queue.Queue[bytes | None] = queue.Queue()
        reader = threading.Thread(target=_read, args=(process.stdout, lines))
        reader.start()
        try:
            _follow(process, lines, left, results, until)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            reader.join()


def _follow(
    process: "subprocess.Popen[bytes]",
    lines: "queue.Queue[bytes | None]",
    left: list[str],
    results: Results,
    until: float,
) -> None:
    """Reads what one process says until it ends or is late; takes what has ended off `left`."""
    # Before its first section a process imports, which has no share of the time of its own.
    deadline = until + _GRACE_SECONDS
    while True:
        try:
            line = lines.get(timeout=max(0.0, deadline - time.time()))
        except queue.Empty:
            results.end(left.pop(0), "cut off: it took longer than its share of the time")
            return
        if line is None:
            if left:
                status = process.wait()
                results.end(left.pop(0), f"the process ended with status {status}; see log.txt")
            return
        said = json.loads(line)
        name = said["section"]
        if "limit" in said:
            results.begin(name, said["limit"])
            deadline = time.time() + said["limit"] + _GRACE_SECONDS
        elif "row" in said:
            results.add(name, said["row"])
        else:
            results.end(name, said["end"], said["cpu_seconds"])
            left.remove(name)
            deadline = until + _GRACE_SECONDS


def _read(source: IO[bytes], lines: "queue.Queue[bytes | None]") -> None:
    with source:
        for line in source:
            lines.put(line)
    lines.put(None)


def _environment(settings: Settings) -> dict[str, str]:
    """Variables of the process that measures: what it compiles is kept, the CPU stays visible."""
    found = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    found.setdefault("JAX_COMPILATION_CACHE_DIR", str(settings.out / "compiled"))
    found.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    if settings.tiny and version("jaxlib") == "0.10.2":  # an unknown flag ends a process
        quickly = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
        found.setdefault("XLA_FLAGS", quickly)
    platforms = [name for name in found.get("JAX_PLATFORMS", "").split(",") if name]
    if platforms and "cpu" not in platforms:
        found["JAX_PLATFORMS"] = ",".join([*platforms, "cpu"])
    return found


def _only_a_cpu() -> bool:
    """Whether JAX finds nothing else; asked of another process, which lets the devices go."""
    program = "import jax; print('platform', jax.default_backend())"
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    return "platform cpu" in found.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the sections, writes the files, and says where they are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("first_light"), metavar="DIR")
    parser.add_argument(
        "--seconds", type=float, default=480.0, help="of all sections (%(default)s)"
    )
    parser.add_argument("--only", metavar="NAME,...", help=f"some of {', '.join(SECTIONS)}")
    parser.add_argument("--tiny", nargs="?", const="yes", choices=("yes", "no"))
    parser.add_argument("--rounds", type=int, default=5, help="of a timing (%(default)s)")
    parser.add_argument("--measure", type=float, metavar="UNTIL", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    names = options.only.split(",") if options.only else list(SECTIONS)
    if unknown := sorted({*names} - {*SECTIONS}):
        parser.error(f"no section {', '.join(unknown)} in {', '.join(SECTIONS)}")
    out = options.out.absolute()
    if options.measure is not None:
        measure(names, Settings(out, options.tiny == "yes", options.rounds), options.measure)
        return 0
    try:
        check_own(out, "results.json", "--out")
    except UserError as error:
        parser.error(str(error))
    until = time.time() + options.seconds
    tiny = options.tiny == "yes" if options.tiny else _only_a_cpu()
    settings = Settings(out, tiny, 2 if tiny else options.rounds)
    out.mkdir(parents=True, exist_ok=True)
    facts = {
        "command": " ".join(["python -m benchmarks.first_light", *(arguments or sys.argv[1:])]),
        "tiny": tiny,
        "seconds": options.seconds,
    }
    results = Results(out, names, facts)
    supervise(names, settings, until, results)
    print(f"results: {out / 'results.md'}")
    return 0 if results.good else 1


if __name__ == "__main__":
    sys.exit(main())
