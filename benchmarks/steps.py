"""Full training steps beside the same steps in PyTorch: the suite `steps`.

Same network, loss, optimiser, precision and number of threads; no augmentation, no EMA. Before
anything is timed the numbers of parameters and, with copied weights and the same noise, the losses
of the first step must be equal. Our steps also find norms of gradients and accuracies, and undo
themselves where anything is not finite; PyTorch's do not. PyTorch's discriminators also update
running statistics on generated images, which nothing in a step reads.
"""

import contextlib
import dataclasses
import gc
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks import counting, parity, timing
from skin_jax import tasks
from skin_jax.base import devices
from skin_jax.data.classes import HAM10000
from skin_jax.tasks import augment, classifier, dcgan, sgan

PyTree = Any
Row = dict[str, Any]

# PyTorch's variants: name -> channels-last, compiled.
_VARIANTS = {"eager": (False, False), "channels_last": (True, False), "compile": (True, True)}

_TOLERANCE = {"float32": 1e-3, "bf16": 3e-2}
"""Relative, of the first step's losses; bf16 has 8 bits."""


def _sgan(config: ConfigDict) -> ConfigDict:
    config.batch_size, config.data.image_size = 16, 224
    return config


def _dcgan(config: ConfigDict, classes: Sequence[str]) -> ConfigDict:
    config.batch_size, config.data.image_size, config.classes = 64, 64, tuple(classes)
    return config


def _classifier(config: ConfigDict, name: str, batch_size: int) -> ConfigDict:
    config.model.name, config.batch_size, config.data.image_size = name, batch_size, 224
    config.optimizer.schedule, config.optimizer.warmup_steps = "constant", 0
    return config


CONFIGS: dict[str, Callable[[], ConfigDict]] = {
    "sgan_224_b16": lambda: _sgan(sgan.defaults()),
    "dcgan_64_b64": lambda: _dcgan(dcgan.defaults(), HAM10000.names[:1]),
    "dcgan_64_b64_seven": lambda: _dcgan(dcgan.defaults(), HAM10000.names),
    "resnet50_224_b8": lambda: _classifier(classifier.defaults(), "resnet50", 8),
    "efficientnet_lite0_224_b16": lambda: _classifier(
        classifier.defaults(), "efficientnet_lite0", 16
    ),
}

NAMES = tuple(CONFIGS)

_TORCH_NETWORKS = {"resnet50": "resnet", "efficientnet_lite0": "efficientnet_lite"}


def config_of(name: str, precision: str) -> ConfigDict:
    """The configuration of a row, without augmentation and EMA."""
    config = CONFIGS[name]()
    config.precision = precision
    config.ema_decay = 0.0
    leave_images_alone(config)
    return config


def leave_images_alone(config: ConfigDict) -> None:
    """Turns the augmentation of a configuration off, in place."""
    config.augment.update(dataclasses.asdict(augment.Augmentation()))


class OurStep:
    """The training step of a configuration's task, as the training loop runs it on one device.

    It is the first device where none is given.

    Attributes:
      task: of the configuration.
      state: after the last step; before the first, with random weights.
      batch: image uint8 [B, S, S, 3], label int32 [B], position uint32 [B], random.
      rng: the run's key.
    """

    def __init__(self, config: ConfigDict, device: jax.Device | None = None):
        device = device or jax.devices()[0]
        self.task = tasks.build(config, HAM10000.names, np.full(len(HAM10000), 10**6), 10_000, 1.0)
        # All of it committed to the device, as what a step returns is: or it would compile twice.
        self.rng = jax.device_put(jax.random.key(0), device)
        self.state: Any = jax.jit(self.task.init)(self.rng)
        size = config.data.image_size
        draw = np.random.default_rng(0)
        if isinstance(self.task, dcgan.Dcgan):
            labels = np.repeat(self.task.labels, config.batch_size)
        else:
            labels = np.arange(config.batch_size) % len(HAM10000)
        self.batch = {
            "image": draw.integers(0, 256, (len(labels), size, size, 3), np.uint8),
            "label": labels.astype(np.int32),
            "position": np.arange(len(labels), dtype=np.uint32),
        }
        self._on_device = jax.device_put(self.batch, device)
        self._step = jax.jit(
            self.task.train_step,
            donate_argnums=0,
            compiler_options=devices.compiler_options(device.platform),
        )

    def once(self) -> dict[str, jax.Array]:
        """One step; its metrics, maybe not there yet."""
        self.state, metrics = self._step(self.state, self._on_device, self.rng)
        return metrics

    def run(self, steps: int) -> None:
        """Some steps; returns when they are done."""
        for _ in range(steps):
            self.once()
        jax.block_until_ready(self.state)

    @property
    def num_parameters(self) -> int:
        """Of all networks."""
        if isinstance(self.task, classifier.Classifier):
            networks = [self.state.network]
        else:
            gans = self.state.gans if isinstance(self.task, dcgan.Dcgan) else self.state
            networks = [gans.generator, gans.discriminator]
        return sum(leaf.size for n in networks for leaf in jax.tree.leaves(n.params))

    def noise(self) -> list[np.ndarray] | None:
        """What the generators get in step 0, [B, Z] of each; None where there is none."""
        if isinstance(self.task, sgan.Sgan):
            return [np.asarray(self.task.training_noise(self.rng, 0, len(self.batch["label"])))]
        if isinstance(self.task, dcgan.Dcgan):
            keys = augment.keys_of(self.rng, jnp.asarray(self.task.labels))
            return [np.asarray(self.task.training_noise(key, 0)) for key in keys]
        return None

    def memory_mb(self) -> dict[str, float]:
        """Memory of the compiled step: what it is given, and what it needs meanwhile."""
        lowered = self._step.lower(self.state, self._on_device, self.rng)
        found: Any = lowered.compile().memory_analysis()
        return {
            "arguments_mb": found.argument_size_in_bytes / 1e6,
            "temporaries_mb": found.temp_size_in_bytes / 1e6,
        }

    def work(self) -> counting.Work:
        """Operations and bytes of a step."""
        return counting.count(self.task.train_step, self.state, self.batch, self.rng)


def torch_steps(
    config: ConfigDict, ours: OurStep, precision: str, variants: Sequence[str]
) -> Iterator[tuple[str, Any]]:
    """PyTorch's variants of the step with the weights of ours, which has made no step yet.

    Yields:
      Name of the variant, and a `benchmarks.torch_steps.Step`.
    """
    from benchmarks import torch_steps as theirs

    task, batch = ours.task, ours.batch
    # Weights leave for the host once: the first of our steps donates them.
    if isinstance(task, classifier.Classifier):
        name = _TORCH_NETWORKS[config.model.name]
        tensors = theirs.classifier_network(name, len(HAM10000)).state_dict()
        arrays = {k: v.numpy() for k, v in tensors.items()}
        loaded = parity.flax_variables(ours.state.variables, task.network, arrays)
        ours.state = jax.device_put(
            ours.state.replace(network=ours.state.network.replace(**loaded))
        )
        params = {}
    else:
        gans = ours.state.gans if isinstance(task, dcgan.Dcgan) else ours.state
        params = jax.device_get(
            {"generator": gans.generator.params, "discriminator": gans.discriminator.params}
        )
    for key in variants:
        variant = theirs.Variant(*_VARIANTS[key], bf16=precision == "bf16")
        if isinstance(task, sgan.Sgan):
            yield (
                key,
                theirs.sgan(config, params, batch["image"], batch["label"], len(HAM10000), variant),
            )
        elif isinstance(task, dcgan.Dcgan):
            each = [jax.tree.map(lambda x, k=k: x[k], params) for k in range(len(task.labels))]
            images = batch["image"].reshape(len(each), -1, *batch["image"].shape[1:])
            yield key, theirs.dcgan(config, each, images, variant)
        else:
            network = theirs.classifier_network(name, len(HAM10000))
            yield (
                key,
                theirs.classifier(config, network, task, batch["image"], batch["label"], variant),
            )


class MismatchError(Exception):
    """What is to be compared is not the same."""


def check_equal(ours: OurStep, losses: PyTree, theirs: Any, name: str, tolerance: float) -> None:
    """Makes PyTorch's first step, and compares.

    Args:
      ours: before or after any step.
      losses: our metrics of the first step.
      theirs: a `benchmarks.torch_steps.Step` that has made none.
      name: of the variant, for the message.
      tolerance: relative, of the losses.

    Raises:
      MismatchError: parameters or losses differ.
    """
    if theirs.num_parameters != ours.num_parameters:
        raise MismatchError(
            f"{name} has {theirs.num_parameters} parameters, ours {ours.num_parameters}"
        )
    for key, value in theirs.run(ours.noise()).items():
        found, expected = np.asarray(losses[key]), value.float().cpu().numpy()
        if not np.allclose(found, expected, rtol=tolerance, atol=0.0):
            raise MismatchError(f"{name}: {key} is {expected} in the first step, ours {found}")


def rows(
    rounds: int, only: Sequence[str], precision: str, variants: Sequence[str] = tuple(_VARIANTS)
) -> Iterator[Row]:
    """A row for each of the named steps, beside some variants of PyTorch's."""
    dtype = jnp.bfloat16 if precision == "bf16" else jnp.float32
    peak, bandwidth = timing.peak_gflops(dtype), timing.peak_gbytes()
    for name in only:
        found = _row(name, rounds, precision, variants)
        # The machine may have had less to give at the first measurement.
        peak = max(peak, timing.peak_gflops(dtype))
        bandwidth = max(bandwidth, timing.peak_gbytes())
        seconds = found["ours_ms"] / 1e3
        yield found | {
            "peak_gflops": peak,
            "share_of_peak": found["gflop"] / seconds / peak,
            "peak_gbytes": bandwidth,
            "share_of_bandwidth": found["gbytes"] / seconds / bandwidth,
        }
        gc.collect()


def _row(name: str, rounds: int, precision: str, asked: Sequence[str]) -> Row:
    config = config_of(name, precision)
    ours = OurStep(config)
    work = ours.work()
    variants: dict[str, Callable[[int], Any]] = {}
    failures: dict[str, str] = {}
    if importlib.util.find_spec("torch") is None:
        failures = dict.fromkeys(asked, "PyTorch is not installed")
    elif asked:
        from benchmarks import torch_steps as theirs

        theirs.prepare(timing.num_threads())
        steps = dict(torch_steps(config, ours, precision, asked))
        losses = jax.device_get(ours.once())
        for variant, step in steps.items():
            with contextlib.ExitStack() as stack:
                if variant == "compile":
                    stack.enter_context(_noted(failures, variant))
                check_equal(ours, losses, step, variant, _TOLERANCE[precision])
            if variant not in failures:
                variants[variant] = _repeated(step, theirs.wait)
    seconds = timing.interleaved({"ours": ours.run, **variants}, rounds)
    medians = {key: timing.milliseconds(times) for key, times in seconds.items()}
    best = min(variants, key=lambda key: medians[key], default=None)
    return {
        "name": name,
        "ours_ms": medians["ours"],
        "images_per_second": timing.rate(len(ours.batch["label"]), seconds["ours"]),
        **{f"torch_{key}_ms": medians.get(key) for key in asked},
        "best_torch": best,
        "ratio_to_best_torch": best and float(np.median(seconds["ours"] / seconds[best])),
        "ratios": best and list(map(float, seconds["ours"] / seconds[best])),
        "failures": failures,
        "gflop": work.flops / 1e9,
        "gbytes": work.bytes / 1e9,
    }


@contextlib.contextmanager
def _noted(failures: dict[str, str], variant: str) -> Iterator[None]:
    """What goes wrong in compiling is for the row to tell; wrong results end the run."""
    try:
        yield
    except MismatchError:
        raise
    except Exception as error:  # of a compiler that may not be there
        failures[variant] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"


def _repeated(step: Any, wait: Callable[[], None]) -> Callable[[int], None]:
    def run(steps: int) -> None:
        for _ in range(steps):
            step.run(None)
        wait()

    return run
