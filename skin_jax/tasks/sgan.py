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

from skin_jax.models.dcgan import Discriminator, DiscriminatorOutput, Generator
from skin_jax.tasks import augment, losses, optimizers, settings
from skin_jax.tasks.declared.sgan import defaults, smoke
from skin_jax.tasks.diffaugment import DiffAugment, diffaugment
from skin_jax.tasks.gan import Metrics, adversarial_step, in_training
from skin_jax.tasks.gradcam import grad_cam
from skin_jax.tasks.state import GanState, Network
from skin_jax.tasks.task import Task

__all__ = ["Sgan", "build", "defaults", "epoch", "settle", "smoke"]

PyTree = Any
GeneratorLoss = Literal["minimax", "non_saturating", "feature_matching"]

# Tags that give each use of the run's key its own stream.
_GENERATOR, _DISCRIMINATOR, _AUGMENT, _NOISE, _AUGMENT_GENERATED = range(5)


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
      augmentation: of the real images alone.
      both: augmentation of real and generated images.
      reading: of the fake output, see `losses`.
      real_smoothing: of the target of real images, see `losses.smoothed`.
      generator_loss: objective of G.
      feature_matching: weight of feature matching next to another objective; 0 is off.
      class_weights: float32 [n], of the supervised loss.
      labelled_share: of a batch where some training images have no label. These train "not fake"
        alone (Salimans et al. 2016, section 5).
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
    both: DiffAugment
    reading: losses.Reading
    real_smoothing: float
    generator_loss: GeneratorLoss
    feature_matching: float
    class_weights: np.ndarray
    labelled_share: float
    pseudo_label_from_step: int | None
    pseudo_label_threshold: float
    simultaneous: bool
    ema_decay: float
    labelled_rows: int | None = None

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

    def with_unlabelled(self, batch_size: int) -> "Sgan":
        """The task for batches whose last rows have no label; see `Task.with_unlabelled`."""
        rows = settings.labelled_rows(self.labelled_share, batch_size)
        return dataclasses.replace(self, labelled_rows=rows)

    def train_step(
        self, state: GanState, batch: dict[str, jax.Array], rng: jax.Array
    ) -> tuple[GanState, Metrics]:
        """One D step, then one G step against the new D on the same generated images.

        Args:
          state: before the step.
          batch: image uint8 [B, S, S, 3], label int32 [B], of which the first `labelled_rows`
            are read, position uint32 [B].
          rng: the run's key; every step and every position derives its own from it.

        Returns:
          The state after the step (the old one where anything was not finite) and float32 scalars.
        """
        of_real, of_generated = (
            augment.keys_of(jax.random.fold_in(rng, tag), batch["position"])
            for tag in (_AUGMENT, _AUGMENT_GENERATED)
        )
        real = augment.augment(batch["image"], of_real, self.augmentation)
        real = diffaugment(real, jax.vmap(jax.random.fold_in, (0, None))(of_real, 1), self.both)
        labels = batch["label"][: self.labelled_rows]
        noise = self.training_noise(rng, state.step, real.shape[0])

        def generate(params: PyTree) -> tuple[jax.Array, PyTree]:
            images, stats = in_training(self.generator, params, state.generator.batch_stats, noise)
            return diffaugment(images, of_generated, self.both), stats

        def objective(generated: jax.Array, d: Network) -> jax.Array:
            judge = state.discriminator if self.simultaneous else d
            return self.generator_objective(generated, real, judge)

        return adversarial_step(
            state,
            generate,
            lambda generated: self.discriminator_step(
                state.discriminator, real, labels, generated, state.step
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
          labels: int32 [L], of the first L real images; the others have none.
          generated: float [B, S, S, 3] in [-1, 1]; no gradient reaches the generator.
          step: int32 [], for the start of pseudo-labels.
        """
        generated = jax.lax.stop_gradient(generated)

        def loss_of(params: PyTree) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
            on_real, stats = in_training(self.discriminator, params, network.batch_stats, real)
            on_generated, _ = in_training(
                self.discriminator, params, network.batch_stats, generated
            )
            of_labelled = on_real.logits[: len(labels)]
            log_fake_real, log_true_real = losses.log_p_fake(on_real.logits, self.reading)
            log_fake_generated, _ = losses.log_p_fake(on_generated.logits, self.reading)
            parts = {
                "d_supervised": losses.supervised(
                    of_labelled, labels, jnp.asarray(self.class_weights)
                ),
                "d_real": losses.smoothed(log_true_real, log_fake_real, self.real_smoothing),
                "d_generated": -jnp.mean(log_fake_generated),
            }
            if self.pseudo_label_from_step is not None:
                loss = losses.pseudo_label(on_generated.logits, self.pseudo_label_threshold)
                parts["d_pseudo_label"] = jnp.where(step >= self.pseudo_label_from_step, loss, 0.0)
            correct = jnp.argmax(of_labelled[:, :-1], axis=-1) == labels
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
        matched = jnp.zeros(())
        if self.generator_loss == "feature_matching" or self.feature_matching:
            on_real, _ = in_training(self.discriminator, judge.params, judge.batch_stats, real)
            matched = losses.feature_matching(on_real.features, on_generated.features)
        if self.generator_loss == "feature_matching":
            return matched
        objective = losses.minimax if self.generator_loss == "minimax" else losses.non_saturating
        adversarial = objective(on_generated.logits, self.reading)
        return (
            adversarial + self.feature_matching * matched if self.feature_matching else adversarial
        )

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

    def realness(self, state: GanState, images: jax.Array, label: jax.Array | int) -> jax.Array:
        """The discriminator's probability that images are real, float32 [B], as in training.

        Args:
          state: whose discriminator judges, not averaged.
          images: uint8 [B, S, S, 3], all real or all generated.
          label: not used: it is not told the class.
        """
        del label
        judge = state.discriminator
        output, _ = in_training(
            self.discriminator, judge.params, judge.batch_stats, augment.to_float(images)
        )
        return 1.0 - jnp.exp(losses.log_p_fake(output.logits, self.reading)[0])

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
    model, loss = config.model, config.loss
    size = config.data.image_size
    settings.check_size(size)
    dtype = settings.compute_dtype(config.precision)
    return Sgan(
        generator=Generator(
            size,
            model.width,
            model.generator_batch_norm,
            upsampled_image=model.upsampled_image,
            dtype=dtype,
        ),
        discriminator=Discriminator(
            len(classes) + 1,
            model.width,
            model.discriminator_batch_norm,
            spectral_norm=model.discriminator_spectral_norm,
            kernel_size=model.discriminator_kernel_size,
            dtype=dtype,
        ),
        image_size=size,
        noise_size=model.noise_size,
        generator_optimizer=optimizers.make(config.optimizer, num_steps),
        discriminator_optimizer=optimizers.make(config.optimizer, num_steps),
        augmentation=settings.augmentation(config.augment),
        both=DiffAugment(**config.diffaugment),
        reading=loss.reading,
        real_smoothing=loss.real_smoothing,
        generator_loss=loss.generator,
        feature_matching=loss.feature_matching,
        class_weights=settings.class_weights(loss.class_weights, class_counts),
        labelled_share=config.data.labelled_share,
        pseudo_label_from_step=(
            round(loss.pseudo_label_from_epoch * steps_per_epoch)
            if loss.generated_images == "pseudo_label"
            else None
        ),
        pseudo_label_threshold=loss.pseudo_label_threshold,
        simultaneous=loss.updates == "simultaneous",
        ema_decay=config.ema_decay,
    )
