"""Paper A's task: a semi-supervised GAN whose discriminator is the classifier.

Rashid, Tanveer, Khan, "Skin Lesion Classification Using GAN based Data Augmentation", EMBC 2019.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from skin_jax.base.errors import UserError
from skin_jax.models.dcgan import Discriminator, DiscriminatorOutput, Generator, check_image_size
from skin_jax.tasks import augment, losses, optimizers, settings
from skin_jax.tasks.declared.sgan import defaults, smoke
from skin_jax.tasks.gan import Metrics, adversarial_step, in_training
from skin_jax.tasks.gradcam import grad_cam
from skin_jax.tasks.state import GanState, Network
from skin_jax.tasks.task import Task

__all__ = ["Sgan", "build", "defaults", "epoch", "settle", "smoke"]

PyTree = Any
GeneratorLoss = Literal["minimax", "non_saturating", "feature_matching"]

# Tags that give each use of the run's key its own stream.
_GENERATOR, _DISCRIMINATOR, _AUGMENT, _NOISE = range(4)


@dataclasses.dataclass(frozen=True)
class Sgan(Task):
    """The semi-supervised GAN, closed over its networks and loss weights.

    Attributes:
      generator: noise to images.
      discriminator: images to n+1 logits and features.
      image_size: S.
      noise_size: Z, length of the standard normal noise vector.
      generator_optimizer: of G.
      discriminator_optimizer: of D.
      augmentation: of the real images.
      reading: of the fake output, see `losses`.
      generator_loss: objective of G.
      class_weights: float32 [n], of the supervised loss.
      pseudo_label_from_step: from this step on, D also learns confident generated images as
        examples of their class (use (ii)); None: generated images are only the fake class.
      pseudo_label_threshold: the class probability that counts as confident.
      simultaneous: G's gradient at the D before its step, instead of the new D.
      ema_decay: 0 is off.
    """

    generator: Generator
    discriminator: Discriminator
    image_size: int
    noise_size: int
    generator_optimizer: optax.GradientTransformation
    discriminator_optimizer: optax.GradientTransformation
    augmentation: augment.Augmentation
    reading: losses.Reading
    generator_loss: GeneratorLoss
    class_weights: np.ndarray
    pseudo_label_from_step: int | None
    pseudo_label_threshold: float
    simultaneous: bool
    ema_decay: float

    headline = ("d_loss", "d_supervised", "g_loss", "train_accuracy")
    evaluators = ("samples", "classification")

    def init(self, rng: jax.Array) -> GanState:
        """The state before the first step."""
        noise = jnp.zeros((1, self.noise_size))
        images = jnp.zeros((1, self.image_size, self.image_size, 3))
        g = self.generator.init(jax.random.fold_in(rng, _GENERATOR), noise, train=True)
        d = self.discriminator.init(jax.random.fold_in(rng, _DISCRIMINATOR), images, train=True)
        return GanState.create(
            Network.create(g, self.generator_optimizer),
            Network.create(d, self.discriminator_optimizer),
            use_ema=self.ema_decay > 0,
        )

    def train_step(
        self, state: GanState, batch: dict[str, jax.Array], rng: jax.Array
    ) -> tuple[GanState, Metrics]:
        """One D step, then one G step against the new D on the same generated images.

        Args:
          state: before the step.
          batch: image uint8 [B, S, S, 3], label int32 [B], position uint32 [B].
          rng: the run's key; every step and every position derives its own from it.

        Returns:
          The state after the step (the old one where anything was not finite) and float32 scalars.
        """
        keys = augment.keys_of(jax.random.fold_in(rng, _AUGMENT), batch["position"])
        real = augment.augment(batch["image"], keys, self.augmentation)
        noise = self.training_noise(rng, state.step, real.shape[0])

        def objective(generated: jax.Array, d: Network) -> jax.Array:
            judge = state.discriminator if self.simultaneous else d
            return self.generator_objective(generated, real, judge)

        return adversarial_step(
            state,
            lambda params: in_training(self.generator, params, state.generator.batch_stats, noise),
            lambda generated: self.discriminator_step(
                state.discriminator, real, batch["label"], generated, state.step
            ),
            objective,
            self.generator_optimizer,
            self.ema_decay,
        )

    def training_noise(self, rng: jax.Array, step: jax.Array | int, count: int) -> jax.Array:
        """Noise of G in a step, float32 [count, Z], of the run's key and the step's number."""
        key = jax.random.fold_in(jax.random.fold_in(rng, _NOISE), step)
        # A flat draw has the same numbers and compiles faster, see `models.layers.normal_init`.
        return jax.random.normal(key, (count * self.noise_size,)).reshape(count, -1)

    def discriminator_step(
        self,
        network: Network,
        real: jax.Array,
        labels: jax.Array,
        generated: jax.Array,
        step: jax.Array,
    ) -> tuple[Network, Metrics]:
        """One optimiser step of D; real and generated images pass it separately.

        Running statistics come from the real pass alone.

        Args:
          network: D before.
          real: float [B, S, S, 3] in [-1, 1].
          labels: int32 [B].
          generated: float [B, S, S, 3] in [-1, 1]; no gradient reaches the generator.
          step: int32 [], for the start of pseudo-labels.
        """
        generated = jax.lax.stop_gradient(generated)

        def loss_of(params: PyTree) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
            on_real, stats = in_training(self.discriminator, params, network.batch_stats, real)
            on_generated, _ = in_training(
                self.discriminator, params, network.batch_stats, generated
            )
            log_fake_real, log_true_real = losses.log_p_fake(on_real.logits, self.reading)
            log_fake_generated, _ = losses.log_p_fake(on_generated.logits, self.reading)
            parts = {
                "d_supervised": losses.supervised(
                    on_real.logits, labels, jnp.asarray(self.class_weights)
                ),
                "d_real": -jnp.mean(log_true_real),
                "d_generated": -jnp.mean(log_fake_generated),
            }
            if self.pseudo_label_from_step is not None:
                loss = losses.pseudo_label(on_generated.logits, self.pseudo_label_threshold)
                parts["d_pseudo_label"] = jnp.where(step >= self.pseudo_label_from_step, loss, 0.0)
            correct = jnp.argmax(on_real.logits[:, :-1], axis=-1) == labels
            metrics = {
                **parts,
                "train_accuracy": jnp.mean(correct.astype(jnp.float32)),
                "p_fake_real": jnp.mean(jnp.exp(log_fake_real)),
                "p_fake_generated": jnp.mean(jnp.exp(log_fake_generated)),
            }
            return sum(parts.values(), jnp.zeros(())), (metrics, stats)

        (loss, (metrics, stats)), grads = jax.value_and_grad(loss_of, has_aux=True)(network.params)
        metrics |= {"d_loss": loss, "d_grad_norm": optax.tree.norm(grads)}
        return network.updated(grads, stats, self.discriminator_optimizer), metrics

    def generator_objective(
        self, generated: jax.Array, real: jax.Array, judge: Network
    ) -> jax.Array:
        """G's loss as a function of its images, float32 []; D's statistics are left alone."""
        on_generated, _ = in_training(
            self.discriminator, judge.params, judge.batch_stats, generated
        )
        if self.generator_loss == "feature_matching":
            on_real, _ = in_training(self.discriminator, judge.params, judge.batch_stats, real)
            return losses.feature_matching(on_real.features, on_generated.features)
        objective = losses.minimax if self.generator_loss == "minimax" else losses.non_saturating
        return objective(on_generated.logits, self.reading)

    def predict(self, state: GanState, images: jax.Array) -> jax.Array:
        """Class probabilities float32 [B, n] of uint8 images [B, S, S, 3]; "fake" is left out.

        The n+1 logits become n probabilities here and nowhere else: the softmax over the n class
        logits, which is p(class | not fake) in both readings.
        """
        output = self._judge(state.averaged["discriminator"], images)
        return jax.nn.softmax(output.logits[:, :-1], axis=-1)

    def features(self, state: GanState, images: jax.Array) -> jax.Array:
        """Means over height and width of the discriminator's last activations, float32 [B, D].

        Args:
          state: as in `predict`.
          images: uint8 [B, S, S, 3].
        """
        output = self._judge(state.averaged["discriminator"], images)
        return jnp.mean(output.features.astype(jnp.float32), axis=(1, 2))

    def explain(self, state: GanState, images: jax.Array, labels: jax.Array) -> jax.Array:
        """Grad-CAM of the discriminator's last convolution, float32 [B, S/16, S/16] in [0, 1].

        Args:
          state: as in `predict`.
          images: uint8 [B, S, S, 3].
          labels: int32 [B], the class to explain.
        """
        variables = state.averaged["discriminator"]
        return grad_cam(
            lambda offset: self._judge(
                {**variables, "perturbations": {"features": offset}}, images
            ),
            jax.eval_shape(self._judge, variables, images).features,
            labels,
        )

    def generators(self, state: GanState) -> PyTree:
        """Variables of the generator, averaged where EMA is on."""
        return state.averaged["generator"]

    def noise(self, keys: jax.Array) -> jax.Array:
        """A noise vector for each of B typed keys: float32 [B, Z], standard normal."""
        return jax.vmap(lambda key: jax.random.normal(key, (self.noise_size,)))(keys)

    def images_of(self, generators: PyTree, label: jax.Array | int, noise: jax.Array) -> jax.Array:
        """Images float32 [B, S, S, 3] in [-1, 1] for noise [B, Z], whatever `label` says."""
        del label
        images = self.generator.apply(generators, noise, train=False)
        assert isinstance(images, jax.Array)
        return images

    def _judge(self, variables: PyTree, images: jax.Array) -> DiscriminatorOutput:
        """The discriminator's output for uint8 images, with running statistics."""
        output = self.discriminator.apply(variables, augment.to_float(images), train=False)
        assert isinstance(output, DiscriminatorOutput)
        return output


settle = settings.nothing_to_settle
epoch = settings.whole_split


def build(
    config: ConfigDict,
    classes: Sequence[str],
    class_counts: np.ndarray,
    num_steps: int,
    steps_per_epoch: float,
) -> Sgan:
    """The task of a configuration with the sections of `configs/sgan.py`; see `tasks.Kind`."""
    loss = config.loss
    size = config.data.image_size
    try:
        check_image_size(size)
    except ValueError as error:
        raise UserError(f"config.data.image_size: {error}") from None
    dtype = settings.compute_dtype(config.precision)
    return Sgan(
        generator=Generator(
            size, config.model.width, config.model.generator_batch_norm, dtype=dtype
        ),
        discriminator=Discriminator(
            len(classes) + 1,
            config.model.width,
            config.model.discriminator_batch_norm,
            dtype=dtype,
        ),
        image_size=size,
        noise_size=config.model.noise_size,
        generator_optimizer=optimizers.make(config.optimizer, num_steps),
        discriminator_optimizer=optimizers.make(config.optimizer, num_steps),
        augmentation=settings.augmentation(config.augment),
        reading=loss.reading,
        generator_loss=loss.generator,
        class_weights=settings.class_weights(loss.class_weights, class_counts),
        pseudo_label_from_step=(
            round(loss.pseudo_label_from_epoch * steps_per_epoch)
            if loss.generated_images == "pseudo_label"
            else None
        ),
        pseudo_label_threshold=loss.pseudo_label_threshold,
        simultaneous=loss.updates == "simultaneous",
        ema_decay=config.ema_decay,
    )
