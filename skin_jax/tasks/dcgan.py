"""Paper B's task: one DCGAN for each of some classes, all of them trained in one program.

The networks of the classes are stacked: every array of the state has a first axis of one entry a
class, in the order of `Dcgan.labels`. Nothing passes between the entries, and every random number
of a class comes from the class itself, not from its place, so that a class trains the same alone.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from skin_jax.base import devices
from skin_jax.base.errors import UserError
from skin_jax.models.dcgan import Discriminator, Generator, doublings_from_4x4
from skin_jax.tasks import augment, losses, optimizers, settings
from skin_jax.tasks.declared.dcgan import defaults, smoke
from skin_jax.tasks.gan import Metrics, adversarial_step, in_training
from skin_jax.tasks.state import ClassGansState, GanState, Network
from skin_jax.tasks.task import Drawn, Task, TrainStep

__all__ = ["Dcgan", "build", "defaults", "epoch", "settle", "smoke"]

PyTree = Any
Stack = Literal["auto", "vmap", "unroll"]

# Tags that give each use of a class's key its own stream.
_GENERATOR, _DISCRIMINATOR, _AUGMENT, _NOISE = range(4)


@dataclasses.dataclass(frozen=True)
class Dcgan(Task):
    """The DCGANs of some classes, closed over their networks.

    Attributes:
      labels: int [K], the classes, in increasing order.
      per_class: B, images of each class in a batch.
      generator: noise to images.
      discriminator: images to one logit, of "real".
      image_size: S.
      noise_size: Z, length of the noise vector, uniform in [-1, 1] (Radford et al. 2016, figure 1).
      generator_optimizer: of each G.
      discriminator_optimizer: of each D.
      augmentation: of the real images.
      stack: how the classes share a program: "vmap", every operation once for all of them;
        "unroll", one class after another; "auto", the faster one on the available devices.
      ema_decay: of the generators that are scored and sampled; 0 is off.
    """

    labels: np.ndarray
    per_class: int
    generator: Generator
    discriminator: Discriminator
    image_size: int
    noise_size: int
    generator_optimizer: optax.GradientTransformation
    discriminator_optimizer: optax.GradientTransformation
    augmentation: augment.Augmentation
    stack: Stack
    ema_decay: float

    headline = ("d_loss", "g_loss", "p_real_real", "p_real_generated")
    evaluators = ("generators",)
    conditional = True
    noise_law = "uniform in [-1, 1]"

    def mesh(self, num_devices: int | None, batch_size: int) -> Mesh:
        """The devices; where their number is not given, no more than shorten a step."""
        del batch_size  # of each class: a device has all images of its classes
        if num_devices is None and not devices.several():
            num_devices = self._used(len(jax.devices()))
        return devices.make_mesh(num_devices)

    def placement(self, mesh: Mesh) -> NamedSharding:
        """Where the state lives in training: each class on one device."""
        return devices.over_batch(mesh)

    def _most(self, num_devices: int) -> int:
        """Classes of the device that has most of them."""
        return -(-len(self.labels) // num_devices)

    def _used(self, num_devices: int) -> int:
        """Devices that have classes, where each has as many as there is room for."""
        return -(-len(self.labels) // self._most(num_devices))

    def shares(self, mesh: Mesh) -> str:
        """How many GANs a device trains; "" where there is only one device."""
        classes, most, here = len(self.labels), self._most(mesh.size), len(jax.devices())
        used = self._used(mesh.size)
        if here == 1:
            return ""
        number = f"{used} of {here}" if used < here else f"{here}"
        enough = "; more would not help: each GAN trains on one device"
        return (
            f"{classes} {'GAN' if classes == 1 else 'GANs'} on {number} "
            f"{devices.platform(mesh)} devices, at most {most} each"
        ) + enough * (used < here and most == self._most(here))

    def spread(self, state: ClassGansState, mesh: Mesh) -> ClassGansState:
        """The state with so many classes that each device has as many: the first ones once more.

        What becomes of these copies is never looked at.
        """
        places = jnp.arange(self._most(mesh.size) * mesh.size) % len(self.labels)
        return jax.tree.map(lambda leaf: leaf[places], state)

    def gathered(self, state: ClassGansState) -> ClassGansState:
        """The state without the copies that `spread` added."""
        return jax.tree.map(lambda leaf: leaf[: len(self.labels)], state)

    def fed_rows(self, batch_size: int, mesh: Mesh) -> int:
        """Rows for all classes that `spread` gives the devices."""
        return self._most(mesh.size) * mesh.size * batch_size

    def step_on(self, mesh: Mesh, size: int | None = None) -> TrainStep:
        """`train_step` in which each device trains its own classes, as if there were no others."""
        del size
        on_each = jax.shard_map(
            self.train_step,
            mesh=mesh,
            in_specs=(PartitionSpec("data"), PartitionSpec("data"), PartitionSpec()),
            out_specs=PartitionSpec("data"),
            check_vma=False,
        )

        def step(
            state: ClassGansState, batch: dict[str, jax.Array], rng: jax.Array
        ) -> tuple[ClassGansState, Metrics]:
            state, metrics = on_each(state, batch, rng)
            return state, {key: each[: len(self.labels)] for key, each in metrics.items()}

        return step

    def rows(self, batch_size: int) -> int:
        """Examples in a training batch: `batch_size` of each class."""
        return len(self.labels) * batch_size

    def order(self, sampling: str, exponent: float) -> dict[str, Any]:
        """Every batch holds as many images of each class, side by side."""
        del sampling, exponent
        return {"sampling": "by_class", "classes": self.labels, "per_class": self.per_class}

    def classes_drawn(self, num_classes: int) -> np.ndarray:
        """Labels of the classes that have a generator, int [K], increasing."""
        del num_classes
        return self.labels

    def init(self, rng: jax.Array) -> ClassGansState:
        """The state before the first step."""
        noise = jnp.zeros((1, self.noise_size))
        images = jnp.zeros((1, self.image_size, self.image_size, 3))

        def one(label: jax.Array) -> GanState:
            key = jax.random.fold_in(rng, label)
            g = self.generator.init(jax.random.fold_in(key, _GENERATOR), noise, train=True)
            d = self.discriminator.init(jax.random.fold_in(key, _DISCRIMINATOR), images, train=True)
            fresh = GanState.create(
                Network.create(g, self.generator_optimizer),
                Network.create(d, self.discriminator_optimizer),
                use_ema=False,
            )
            # D is only ever used as it is, so that its average would be for nothing.
            return fresh.replace(ema={"generator": g} if self.ema_decay > 0 else {})

        gans = jax.vmap(one)(jnp.asarray(self.labels))
        return ClassGansState(
            gans=jax.tree.map(jnp.copy, gans),
            best=jax.tree.map(jnp.copy, gans.generator.variables),
            best_score=jnp.full(len(self.labels), jnp.inf, jnp.float32),
            best_step=jnp.zeros(len(self.labels), jnp.int32),
        )

    def train_step(
        self, state: ClassGansState, batch: dict[str, jax.Array], rng: jax.Array
    ) -> tuple[ClassGansState, Metrics]:
        """One D step and one G step of each class.

        Args:
          state: before the step, of all K classes or of some (those of one device).
          batch: image uint8 [K B, S, S, 3] and label int32 [K B], B of each class after another.
          rng: the run's key; every class and step derives its own from it.

        Returns:
          The state after the step (the old one of the classes where anything was not finite) and
          float32 [K] each.
        """

        def stacked(rows: jax.Array) -> jax.Array:
            return rows.reshape(-1, self.per_class, *rows.shape[1:])

        images, labels = stacked(batch["image"]), stacked(batch["label"])[:, 0]
        keys = augment.keys_of(rng, labels)
        gans, metrics = self._each(self._step, state.gans, images, keys)
        return state.replace(gans=gans), metrics

    def _each(self, function: Callable[..., Any], *stacks: PyTree) -> PyTree:
        """The function of each class's entries, stacked again."""

        def unrolled(*stacks: PyTree) -> PyTree:
            count = jax.tree.leaves(stacks)[0].shape[0]
            each = [
                function(*jax.tree.map(lambda leaf, k=k: leaf[k], stacks)) for k in range(count)
            ]
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)

        vmapped = jax.vmap(function)
        if self.stack == "auto":
            return jax.lax.platform_dependent(*stacks, cpu=unrolled, default=vmapped)
        return (vmapped if self.stack == "vmap" else unrolled)(*stacks)

    def _step(self, state: GanState, images: jax.Array, key: jax.Array) -> tuple[GanState, Metrics]:
        """`train_step` of one class: image uint8 [B, S, S, 3], the class's key."""
        positions = state.step * self.per_class + jnp.arange(self.per_class)
        real = augment.augment(
            images,
            augment.keys_of(jax.random.fold_in(key, _AUGMENT), positions),
            self.augmentation,
        )
        noise = self.training_noise(key, state.step)

        def objective(generated: jax.Array, d: Network) -> jax.Array:
            output, _ = in_training(self.discriminator, d.params, d.batch_stats, generated)
            return losses.binary_cross_entropy(output.logits[:, 0], 1.0)

        return adversarial_step(
            state,
            lambda params: in_training(self.generator, params, state.generator.batch_stats, noise),
            lambda generated: self._discriminator_step(state.discriminator, real, generated),
            objective,
            self.generator_optimizer,
            self.ema_decay,
        )

    def training_noise(self, key: jax.Array, step: jax.Array | int) -> jax.Array:
        """Noise of one class's G in a step, float32 [per_class, Z]; `key` is that class's."""
        step_key = jax.random.fold_in(jax.random.fold_in(key, _NOISE), step)
        return self.noise(jax.random.split(step_key, self.per_class))

    def _discriminator_step(
        self, network: Network, real: jax.Array, generated: jax.Array
    ) -> tuple[Network, Metrics]:
        """One optimiser step of D; real and generated images pass it separately.

        Running statistics come from the real pass alone.
        """
        generated = jax.lax.stop_gradient(generated)

        def loss_of(params: PyTree) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
            on_real, stats = in_training(self.discriminator, params, network.batch_stats, real)
            on_generated, _ = in_training(
                self.discriminator, params, network.batch_stats, generated
            )
            on_real, on_generated = on_real.logits[:, 0], on_generated.logits[:, 0]
            loss = losses.binary_cross_entropy(on_real, 1.0)
            loss += losses.binary_cross_entropy(on_generated, 0.0)
            metrics = {
                "p_real_real": jnp.mean(jax.nn.sigmoid(on_real)),
                "p_real_generated": jnp.mean(jax.nn.sigmoid(on_generated)),
            }
            return loss, (metrics, stats)

        (loss, (metrics, stats)), grads = jax.value_and_grad(loss_of, has_aux=True)(network.params)
        metrics |= {"d_loss": loss, "d_grad_norm": optax.tree.norm(grads)}
        return network.updated(grads, stats, self.discriminator_optimizer), metrics

    def noise(self, keys: jax.Array) -> jax.Array:
        """A noise vector for each of B typed keys: float32 [B, Z], uniform in [-1, 1]."""
        return jax.vmap(
            lambda key: jax.random.uniform(key, (self.noise_size,), minval=-1.0, maxval=1.0)
        )(keys)

    def generators(self, state: ClassGansState) -> PyTree:
        """Variables of the generators now, leaves [K, ...], averaged where EMA is on."""
        return state.gans.averaged["generator"]

    def drawn_from(self, state: ClassGansState, step: int, num_classes: int) -> Drawn:
        """The generator with the best score of each class, the newest where none was scored."""
        scored = np.isfinite(state.best_score)

        def chosen(best: jax.Array, newest: jax.Array) -> jax.Array:
            return jnp.where(scored.reshape(-1, *[1] * (best.ndim - 1)), best, newest)

        steps, known = np.full(num_classes, step), np.zeros(num_classes, bool)
        steps[self.labels] = np.where(scored, state.best_step, step)
        known[self.labels] = scored
        return Drawn(jax.tree.map(chosen, state.best, self.generators(state)), steps, known)

    def images_of(self, generators: PyTree, label: jax.Array | int, noise: jax.Array) -> jax.Array:
        """Images float32 [B, S, S, 3] in [-1, 1] of one class.

        Args:
          generators: leaves [K, ...], as `generators` and `drawn_from` give them.
          label: of the class, one of `labels`.
          noise: float32 [B, Z].
        """
        variables = self._of_class(generators, label)
        images = self.generator.apply(variables, noise, train=False)
        assert isinstance(images, jax.Array)
        return images

    def realness(
        self, state: ClassGansState, images: jax.Array, label: jax.Array | int
    ) -> jax.Array:
        """A discriminator's probability that images are real, float32 [B], as in training.

        Args:
          state: whose discriminators judge.
          images: uint8 [B, S, S, 3], all real or all generated.
          label: of their class, one of `labels`.
        """
        judge = self._of_class(state.gans.discriminator.variables, label)
        output, _ = in_training(
            self.discriminator, judge["params"], judge["batch_stats"], augment.to_float(images)
        )
        return jax.nn.sigmoid(output.logits[:, 0])

    def _of_class(self, stacked: PyTree, label: jax.Array | int) -> PyTree:
        """The entries [...] of a class in leaves [K, ...]."""
        place = jnp.sum(jnp.asarray(self.labels) < label)  # converters know no searchsorted
        return jax.tree.map(lambda leaf: leaf[place], stacked)

    def scored(self, state: ClassGansState, scores: jax.Array) -> ClassGansState:
        """The state in which generators with a better score than ever before are the best ones.

        Args:
          state: after some step.
          scores: float32 [K] of its generators, the lower the better; NaN is never the best.
        """
        better = scores < state.best_score

        def chosen(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        return state.replace(
            best=jax.tree.map(chosen, self.generators(state), state.best),
            best_score=chosen(scores, state.best_score),
            best_step=chosen(state.gans.step, state.best_step),
        )


def labels_of(config: ConfigDict, classes: Sequence[str]) -> np.ndarray:
    """The classes that get a GAN, int [K], increasing: all where `config.classes` is empty.

    Raises:
      UserError: an unknown class.
    """
    if unknown := [name for name in config.classes if name not in classes]:
        raise UserError(
            f"config.classes names {unknown[0]!r}, which the data do not have; it takes names "
            f"such as {classes[:2]!r} out of {', '.join(classes)}"
        )
    return np.array(sorted({classes.index(name) for name in config.classes or classes}))


def settle(config: ConfigDict, classes: Sequence[str]) -> None:
    """Writes the names of the classes that get a GAN into the configuration, in their order."""
    config.classes = tuple(classes[label] for label in labels_of(config, classes))


def epoch(config: ConfigDict, classes: Sequence[str], real_counts: np.ndarray) -> int:
    """Images in an epoch: those of the largest class that gets a GAN."""
    return int(real_counts[labels_of(config, classes)].max())


def build(
    config: ConfigDict,
    classes: Sequence[str],
    class_counts: np.ndarray,
    num_steps: int,
    steps_per_epoch: float,
) -> Dcgan:
    """The task of a configuration with the sections of `configs/dcgan.py`; see `tasks.Kind`."""
    del steps_per_epoch
    labels = labels_of(config, classes)
    if len(empty := labels[class_counts[labels] == 0]):
        raise UserError(
            "config.classes: the training split has no images of "
            f"{', '.join(classes[label] for label in empty)}; name the others"
        )
    size = config.data.image_size
    try:
        doublings = doublings_from_4x4(size)
    except ValueError as error:
        raise UserError(f"config.data.image_size: {error}") from None
    dtype = settings.compute_dtype(config.precision)
    return Dcgan(
        labels=labels,
        per_class=config.batch_size,
        generator=Generator(size, config.model.width, True, doublings, dtype=dtype),
        discriminator=Discriminator(1, config.model.width, True, doublings, dtype=dtype),
        image_size=size,
        noise_size=config.model.noise_size,
        generator_optimizer=optimizers.make(config.optimizer, num_steps),
        discriminator_optimizer=optimizers.make(config.optimizer, num_steps),
        augmentation=settings.augmentation(config.augment),
        stack=config.stack,
        ema_decay=config.ema_decay,
    )
