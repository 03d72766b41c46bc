"""A class-conditional projected GAN: one generator for all classes, made for few images.

Sauer, Chitta, Mueller, Geiger, "Projected GANs Converge Faster", NeurIPS 2021, with the
transitional conditioning of Shahbazi, Danelljan, Paudel, Van Gool, "Collapse by Conditioning", ICLR
2022. See `models.fastgan` for the networks.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from skin_jax.base.errors import UserError
from skin_jax.config import NO_WEIGHTS
from skin_jax.models import efficientnet_lite, fastgan, pretrained
from skin_jax.models.efficientnet_lite import EfficientNetLite
from skin_jax.tasks import augment, losses, optimizers, settings
from skin_jax.tasks.declared.projected import defaults, smoke
from skin_jax.tasks.diffaugment import DiffAugment, diffaugment
from skin_jax.tasks.gan import Metrics, adversarial_step, in_training
from skin_jax.tasks.state import GanState, Network, ProjectedState
from skin_jax.tasks.task import Drawn, Task

__all__ = ["Projected", "build", "defaults", "epoch", "settle", "smoke"]

PyTree = Any

# Tags that give each use of the run's key its own stream.
_GENERATOR, _DISCRIMINATOR, _FEATURES, _AUGMENT, _AUGMENT_GENERATED, _NOISE = range(6)


@dataclasses.dataclass(frozen=True)
class Projected(Task):
    """The projected GAN, closed over its networks.

    Attributes:
      num_classes: n.
      generator: noise and classes to images.
      discriminator: projected features and classes to logits.
      frozen: the network whose features D sees.
      features_size: side of the images that it sees.
      projections: `fastgan.mixing`.
      weights: of the frozen network, see `models.pretrained.load`; None: random.
      image_size: S.
      noise_size: Z, length of the noise vector, uniform on the sphere of radius sqrt(Z).
      generator_optimizer: of G.
      discriminator_optimizer: of D.
      augmentation: of the real images alone.
      both: augmentation of real and generated images.
      ramp: the steps between which the classes come into play, 0 before and 1 after.
      ema_decay: of the generator that is scored and sampled; 0 is off.
    """

    num_classes: int
    generator: fastgan.Generator
    discriminator: fastgan.Discriminator
    frozen: EfficientNetLite
    features_size: int
    projections: Sequence[tuple[np.ndarray, ...]]
    weights: str | None
    image_size: int
    noise_size: int
    generator_optimizer: optax.GradientTransformation
    discriminator_optimizer: optax.GradientTransformation
    augmentation: augment.Augmentation
    both: DiffAugment
    ramp: tuple[float, float]
    ema_decay: float

    headline = ("d_loss", "g_loss", "logit_real", "logit_generated")
    evaluators = ("generators",)
    conditional = True
    noise_law = "standard normal, the vector then divided by its root mean square"
    compared_with = "val"

    def init(self, rng: jax.Array) -> ProjectedState:
        """The state before the first step, all weights random."""
        noise = jnp.zeros((1, self.noise_size))
        classes = jnp.zeros((1, self.num_classes))
        images = jnp.zeros((1, self.image_size, self.image_size, 3))
        keys = [jax.random.fold_in(rng, tag) for tag in (_GENERATOR, _DISCRIMINATOR, _FEATURES)]
        g = self.generator.init(keys[0], noise, classes, train=True)
        features = self.frozen.init(keys[2], images, train=False)
        seen = jax.eval_shape(self._projected, features, images)
        zeros = [jnp.zeros(each.shape, each.dtype) for each in seen]
        d = self.discriminator.init(keys[1], zeros, classes, train=True)
        gan = GanState.create(
            Network.create(g, self.generator_optimizer),
            Network.create(d, self.discriminator_optimizer),
            use_ema=False,
        )
        # D is only ever used as it is, so that its average would be for nothing.
        gan = gan.replace(ema={"generator": g} if self.ema_decay > 0 else {})
        return ProjectedState(
            gan=jax.tree.map(jnp.copy, gan),
            features=features,
            best=jax.tree.map(jnp.copy, {"variables": g, "ramp": jnp.zeros(())}),
            best_score=jnp.full(self.num_classes, jnp.inf, jnp.float32),
            best_step=jnp.zeros(self.num_classes, jnp.int32),
        )

    def pretrained(self, state: ProjectedState) -> ProjectedState:
        """The state before step 0 with the frozen network's weights; see `Task.pretrained`."""
        if self.weights is None:
            return state
        return state.replace(features=pretrained.load(state.features, self.frozen, self.weights))

    def train_step(
        self, state: ProjectedState, batch: dict[str, jax.Array], rng: jax.Array
    ) -> tuple[ProjectedState, Metrics]:
        """One D step, then one G step against the new D on the same generated images.

        Generated images have the classes of the real ones of the batch.

        Args:
          state: before the step.
          batch: image uint8 [B, S, S, 3], label int32 [B], position uint32 [B].
          rng: the run's key; every step and every position derives its own from it.

        Returns:
          The state after the step (the old one where anything was not finite) and float32 scalars.
        """
        gan = state.gan
        positions = batch["position"]
        of_real, of_generated, of_noise = (
            augment.keys_of(jax.random.fold_in(rng, tag), positions)
            for tag in (_AUGMENT, _AUGMENT_GENERATED, _NOISE)
        )
        real = augment.augment(batch["image"], of_real, self.augmentation)
        real = diffaugment(real, jax.vmap(jax.random.fold_in, (0, None))(of_real, 1), self.both)
        seen_real = self._projected(state.features, real)
        classes = jax.nn.one_hot(batch["label"], self.num_classes)
        noise = self.noise(of_noise)
        ramp = self.ramp_at(gan.step)

        def generate(params: PyTree) -> tuple[tuple[jax.Array, ...], PyTree]:
            images, stats = in_training(
                self.generator, params, gan.generator.batch_stats, noise, classes, ramp
            )
            images = diffaugment(images, of_generated, self.both)
            return self._projected(state.features, images), stats

        def objective(seen: tuple[jax.Array, ...], d: Network) -> jax.Array:
            logits, _ = in_training(
                self.discriminator, d.params, d.batch_stats, seen, classes, ramp
            )
            return -jnp.mean(logits)

        new, metrics = adversarial_step(
            gan,
            generate,
            lambda seen: self._discriminator_step(
                gan.discriminator, seen_real, seen, classes, ramp
            ),
            objective,
            self.generator_optimizer,
            self.ema_decay,
        )
        return state.replace(gan=new), metrics | {"ramp": ramp}

    def ramp_at(self, step: jax.Array) -> jax.Array:
        """The part that classes play after a step, float32 [] in [0, 1]."""
        start, end = self.ramp
        return jnp.clip((step.astype(jnp.float32) - start) / max(end - start, 1.0), 0.0, 1.0)

    def _discriminator_step(
        self,
        network: Network,
        real: tuple[jax.Array, ...],
        generated: tuple[jax.Array, ...],
        classes: jax.Array,
        ramp: jax.Array,
    ) -> tuple[Network, Metrics]:
        """One optimiser step of the discriminators; real and generated pass them separately.

        Running statistics come from the real pass alone.
        """
        generated = jax.lax.stop_gradient(generated)

        def loss_of(params: PyTree) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
            on_real, stats = in_training(
                self.discriminator, params, network.batch_stats, real, classes, ramp
            )
            on_generated, _ = in_training(
                self.discriminator, params, network.batch_stats, generated, classes, ramp
            )
            metrics = {"logit_real": jnp.mean(on_real), "logit_generated": jnp.mean(on_generated)}
            return losses.hinge(on_real, on_generated), (metrics, stats)

        (loss, (metrics, stats)), grads = jax.value_and_grad(loss_of, has_aux=True)(network.params)
        metrics |= {"d_loss": loss, "d_grad_norm": optax.tree.norm(grads)}
        return network.updated(grads, stats, self.discriminator_optimizer), metrics

    def _projected(self, variables: PyTree, images: jax.Array) -> tuple[jax.Array, ...]:
        """What the discriminators see of images float [B, S, S, 3]."""
        return fastgan.projected(
            self.frozen, variables, images, self.projections, self.features_size
        )

    def noise(self, keys: jax.Array) -> jax.Array:
        """A noise vector for each of B typed keys: float32 [B, Z], on the sphere."""
        z = jax.vmap(lambda key: jax.random.normal(key, (self.noise_size,)))(keys)
        return z * jax.lax.rsqrt(jnp.mean(jnp.square(z), axis=1, keepdims=True))

    def generators(self, state: ProjectedState) -> PyTree:
        """Variables of the generator, averaged where EMA is on, and the ramp that they know."""
        return {
            "variables": state.gan.averaged["generator"],
            "ramp": self.ramp_at(state.gan.step),
        }

    def drawn_from(self, state: ProjectedState, step: int, num_classes: int) -> Drawn:
        """The generator with the best score, the newest where none was scored."""
        scored = np.isfinite(state.best_score).any()
        if not scored:
            newest = self.generators(state), np.full(num_classes, step), np.zeros(num_classes, bool)
            return Drawn(*newest)
        return Drawn(state.best, np.asarray(state.best_step), np.ones(num_classes, bool))

    def images_of(self, generators: PyTree, label: jax.Array | int, noise: jax.Array) -> jax.Array:
        """Images float32 [B, S, S, 3] in [-1, 1] of one class.

        Args:
          generators: as `generators` and `drawn_from` give them.
          label: of the class.
          noise: float32 [B, Z]; scaled by less than 1, images are more typical and less diverse.
        """
        shape = (noise.shape[0], self.num_classes)
        classes = jnp.broadcast_to(jax.nn.one_hot(jnp.reshape(label, 1), shape[1]), shape)
        return self.images_between(generators, classes, noise)

    def images_between(self, generators: PyTree, classes: jax.Array, noise: jax.Array) -> jax.Array:
        """Images as in `images_of`, each between classes: their shares are float [B, n]."""
        images = self.generator.apply(
            generators["variables"], noise, classes, generators["ramp"], train=False
        )
        assert isinstance(images, jax.Array)
        return images

    def realness(
        self, state: ProjectedState, images: jax.Array, label: jax.Array | int
    ) -> jax.Array:
        """Mean of the discriminators' logits, float32 [B], as in training: above 0 is real.

        Args:
          state: whose discriminators judge.
          images: uint8 [B, S, S, 3], all real or all generated.
          label: of their class.
        """
        gan = state.gan
        shape = (images.shape[0], self.num_classes)
        logits, _ = in_training(
            self.discriminator,
            gan.discriminator.params,
            gan.discriminator.batch_stats,
            self._projected(state.features, augment.to_float(images)),
            jnp.broadcast_to(jax.nn.one_hot(jnp.reshape(label, 1), shape[1]), shape),
            self.ramp_at(gan.step),
        )
        return jnp.mean(logits, axis=1)

    def scored(self, state: ProjectedState, scores: jax.Array) -> ProjectedState:
        """The state in which a generator with a better mean score than ever before is the best.

        Args:
          state: after some step.
          scores: float32 [n] of its images of each class, the lower the better; NaN where there
            are too few real ones, at every step.
        """
        better = jnp.nanmean(scores) < jnp.nanmean(state.best_score)

        def chosen(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(better, new, old)

        return state.replace(
            best=jax.tree.map(chosen, self.generators(state), state.best),
            best_score=chosen(scores, state.best_score),
            best_step=chosen(state.gan.step, state.best_step),
        )


settle = settings.nothing_to_settle
epoch = settings.whole_split


def build(
    config: ConfigDict,
    classes: Sequence[str],
    class_counts: np.ndarray,
    num_steps: int,
    steps_per_epoch: float,
) -> Projected:
    """The task of a configuration with the sections of `configs/projected.py`; see `tasks.Kind`."""
    del class_counts, steps_per_epoch
    model, size = config.model, config.data.image_size
    try:
        fastgan.check_image_size(size)
    except ValueError as error:
        raise UserError(f"config.data.image_size: {error}") from None
    if model.features_size % 32:
        raise UserError(
            f"config.model.features_size is {model.features_size}; it must be a multiple of 32"
        )
    if model.conditional_from > model.conditional_to:
        raise UserError(
            f"config.model.conditional_from is {model.conditional_from}, after conditional_to, "
            f"{model.conditional_to}; classes come into play between the two"
        )
    dtype = settings.compute_dtype(config.precision)
    features = efficientnet_lite.lite(0, num_classes=1, dtype=dtype)
    return Projected(
        num_classes=len(classes),
        generator=fastgan.Generator(size, model.width, dtype=dtype),
        discriminator=fastgan.Discriminator(model.discriminator_width, dtype=dtype),
        frozen=features,
        features_size=model.features_size,
        projections=fastgan.mixing(
            config.seed, fastgan.channels(features), model.discriminator_width
        ),
        weights=None if model.weights == NO_WEIGHTS else model.weights,
        image_size=size,
        noise_size=model.noise_size,
        generator_optimizer=optimizers.make(config.optimizer, num_steps),
        discriminator_optimizer=optimizers.make(config.optimizer, num_steps),
        augmentation=settings.augmentation(config.augment),
        both=DiffAugment(**config.diffaugment),
        ramp=(model.conditional_from * num_steps, model.conditional_to * num_steps),
        ema_decay=config.ema_decay,
    )
