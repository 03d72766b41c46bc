"""A classifier: a network, usually pretrained, fine-tuned with conventional augmentation."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from skin_jax.base import code
from skin_jax.base.errors import UserError, first_line
from skin_jax.config import NO_WEIGHTS, choice
from skin_jax.models import pretrained
from skin_jax.models.cnn import Cnn
from skin_jax.models.dcgan import DiscriminatorClassifier
from skin_jax.models.densenet import DenseNet
from skin_jax.models.efficientnet_lite import LITE, lite
from skin_jax.models.layers import ClassifierOutput
from skin_jax.models.resnet import ResNet
from skin_jax.tasks import augment, losses, optimizers, settings
from skin_jax.tasks.declared.classifier import defaults, smoke
from skin_jax.tasks.gradcam import grad_cam
from skin_jax.tasks.state import ClassifierState, Network, guard, update_ema
from skin_jax.tasks.task import Score, Task, TrainStep

__all__ = ["MODELS", "Classifier", "build", "defaults", "epoch", "settle", "smoke"]

PyTree = Any
Metrics = dict[str, jax.Array]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet50": ResNet,
    "densenet121": DenseNet,
    "cnn": Cnn,
    "discriminator": DiscriminatorClassifier,
    "discriminator_bn": functools.partial(DiscriminatorClassifier, batch_norm=True),
    "discriminator_sn": functools.partial(DiscriminatorClassifier, spectral_norm=True),
    **{f"efficientnet_lite{n}": functools.partial(lite, n) for n in range(len(LITE))},
}

# Tags that give each use of the run's key its own stream.
_NETWORK, _AUGMENT, _DROPOUT, _MIX = range(4)

_SCORES = {
    "macro_auc": Score("val_macro_auc", higher_is_better=True),
    "log_loss": Score("val_log_loss", higher_is_better=False),
}


@dataclasses.dataclass(frozen=True)
class SelfTraining:
    """Learning from one's own confident predictions on images without a label.

    Attributes:
      weight: of its loss; 0 is off, and these images are left out.
      threshold: the class probability that counts as confident.
      from_step: the first step.
      labelled_share: of a batch.
    """

    weight: float = 0.0
    threshold: float = 0.95
    from_step: int = 0
    labelled_share: float = 0.5


@dataclasses.dataclass(frozen=True)
class Classifier(Task):
    """The classifier, closed over its network and loss.

    Attributes:
      network: images [B, H, W, 3] in [-1, 1] to `ClassifierOutput`.
      image_size: S.
      weights: what the backbone starts from, see `models.pretrained.load`; None: random.
      optimizer: of the network.
      augmentation: of the training images.
      class_weights: float32 [n], of the loss.
      label_smoothing: in [0, 1).
      ema_decay: 0 is off.
      growth: (first step, side) of the images that are trained on, by step; empty: S.
      mixup, cutmix: of `augment.mix`.
      adjustment: float32 [n], added to the logits of the loss: tau times the log shares of the
        classes in the training stream (Menon et al., ICLR 2021, equation 10; tau = 1 is the
        balanced softmax of Ren et al., NeurIPS 2020). None: nothing.
      score: chooses the best checkpoint.
      self_training: where some training images have no label.
    """

    network: nn.Module
    image_size: int
    weights: str | None
    optimizer: optax.GradientTransformation
    augmentation: augment.Augmentation
    class_weights: np.ndarray
    label_smoothing: float
    ema_decay: float
    growth: tuple[tuple[int, int], ...] = ()
    mixup: float = 0.0
    cutmix: float = 0.0
    adjustment: np.ndarray | None = None
    score: Score = Task.score
    self_training: SelfTraining = SelfTraining()
    labelled_rows: int | None = None

    headline = ("loss", "train_accuracy")
    evaluators = ("classification",)

    def init(self, rng: jax.Array) -> ClassifierState:
        """The state before the first step, all weights random."""
        images = jnp.zeros((1, self.image_size, self.image_size, 3))
        variables = self.network.init(jax.random.fold_in(rng, _NETWORK), images, train=False)
        return ClassifierState.create(
            Network.create(variables, self.optimizer), use_ema=self.ema_decay > 0
        )

    def pretrained(self, state: ClassifierState) -> ClassifierState:
        """The state before step 0 with the backbone of `weights`; the head stays as it came.

        Args:
          state: of `init`: arrays, or `jax.ShapeDtypeStruct`s.

        Returns:
          The state with NumPy arrays where weights were named, their EMA included; the state itself
          where none are.

        Raises:
          UserError: the weights cannot be read, or do not fit the network.
        """
        if self.weights is None:
            return state
        loaded = pretrained.load(state.variables, self.network, self.weights)
        network = state.network.replace(**loaded)
        if not state.ema:
            return state.replace(network=network)
        # Copies, because a donated state must not hold one buffer twice.
        ema = jax.tree.map(
            lambda new, old: new.copy() if isinstance(new, np.ndarray) else old, loaded, state.ema
        )
        return state.replace(network=network, ema=ema)

    def train_size(self, step: int) -> int | None:
        """The side of the images at a step, where it grows."""
        return next((size for first, size in reversed(self.growth) if first <= step), None)

    def step_on(self, mesh: Mesh, size: int | None = None) -> TrainStep:
        """`train_step` on images of a size."""
        del mesh
        return functools.partial(self.train_step, size=size)

    def with_unlabelled(self, batch_size: int) -> "Classifier":
        """The task for batches whose last rows have no label; see `Task.with_unlabelled`."""
        if not self.self_training.weight:
            return self
        rows = settings.labelled_rows(self.self_training.labelled_share, batch_size)
        return dataclasses.replace(self, labelled_rows=rows)

    def train_step(
        self,
        state: ClassifierState,
        batch: dict[str, jax.Array],
        rng: jax.Array,
        size: int | None = None,
    ) -> tuple[ClassifierState, Metrics]:
        """One step.

        Args:
          state: before the step.
          batch: image uint8 [B, S, S, 3], label int32 [B], of which the first `labelled_rows`
            are read, position uint32 [B].
          rng: the run's key; every step and every position derives its own from it.
          size: side of the images that the network gets; None: S.

        Returns:
          The state after the step (the old one where anything was not finite) and float32 scalars.
        """
        keys = augment.keys_of(jax.random.fold_in(rng, _AUGMENT), batch["position"])
        images = augment.augment(batch["image"], keys, self.augmentation, size)
        dropout_key = jax.random.fold_in(jax.random.fold_in(rng, _DROPOUT), state.step)
        labels = batch["label"][: self.labelled_rows]
        mixed = None  # shares of the images' own labels
        if self.mixup or self.cutmix:
            mix_key = jax.random.fold_in(jax.random.fold_in(rng, _MIX), state.step)
            of_labelled, rest = images[: len(labels)], images[len(labels) :]
            of_labelled, mixed = augment.mix(of_labelled, mix_key, self.mixup, self.cutmix)
            images = jnp.concatenate([of_labelled, rest])

        pseudo = None
        if self.labelled_rows is not None:
            # As the weights that would be evaluated see the images, without augmentation.
            pseudo = self.predict(state, batch["image"][self.labelled_rows :])

        def loss_of(params: PyTree) -> tuple[jax.Array, tuple[Metrics, jax.Array, PyTree]]:
            output, updates = self.network.apply(
                {"params": params, "batch_stats": state.network.batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": dropout_key},
            )
            assert isinstance(output, ClassifierOutput)
            of_labelled = output.logits[: len(labels)]
            adjusted = of_labelled
            if self.adjustment is not None:
                adjusted += self.adjustment[None]
            loss_to = functools.partial(
                losses.classification,
                adjusted,
                class_weights=jnp.asarray(self.class_weights),
                label_smoothing=self.label_smoothing,
            )
            loss = loss_to(labels, share=mixed)
            if mixed is not None:
                loss += loss_to(augment.neighbours(labels), share=1.0 - mixed)
            parts = {"loss": loss}
            if pseudo is not None:
                own = self.self_training
                learned = losses.confident(output.logits[len(labels) :], pseudo, own.threshold)
                learned = jnp.where(state.step >= own.from_step, own.weight * learned, 0.0)
                share = jnp.mean((pseudo.max(axis=-1) >= own.threshold).astype(jnp.float32))
                loss += learned
                parts |= {"self_training": learned, "confident": share}
            return loss, (parts, of_labelled, updates.get("batch_stats", {}))

        (_, (parts, logits, stats)), grads = jax.value_and_grad(loss_of, has_aux=True)(
            state.network.params
        )
        network = state.network.updated(grads, stats, self.optimizer)
        step = state.step + 1
        new = state.replace(
            step=step,
            network=network,
            ema=update_ema(state.ema, network.variables, step, self.ema_decay),
        )
        correct = jnp.argmax(logits, axis=-1) == labels
        metrics = {
            **parts,
            "train_accuracy": jnp.mean(correct.astype(jnp.float32)),
            "grad_norm": optax.tree.norm(grads),
        }
        new = guard(state, new, (metrics, stats))
        return new, metrics | new.counts

    def predict(self, state: ClassifierState, images: jax.Array) -> jax.Array:
        """Class probabilities float32 [B, n] of uint8 images [B, S, S, 3]."""
        return jax.nn.softmax(self._judge(state.averaged, images).logits, axis=-1)

    def features(self, state: ClassifierState, images: jax.Array) -> jax.Array:
        """The pooled features that the head classifies, float32 [B, D], of uint8 [B, S, S, 3]."""
        return self._judge(state.averaged, images).pooled

    def traits(self, state: ClassifierState, images: jax.Array) -> jax.Array:
        """Mean and standard deviation of each channel of a map half-way through the network.

        Of uint8 images [B, S, S, 3], float32 [B, 2 C]. The map is the middle one of those that the
        network's own submodules return; where none does, the last one before pooling.
        """
        output, captured = self.network.apply(
            state.averaged,
            augment.to_float(images),
            train=False,
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: len(module.path) == 1,
        )
        outputs = {name: found["__call__"][0] for name, found in captured["intermediates"].items()}
        order = _submodules(self.network, self.image_size)
        maps = [outputs[name] for name in order if getattr(outputs.get(name), "ndim", 0) == 4]
        maps = maps or [output.features]
        middle = maps[len(maps) // 2].astype(jnp.float32)
        return jnp.concatenate([middle.mean(axis=(1, 2)), middle.std(axis=(1, 2))], axis=-1)

    def explain(self, state: ClassifierState, images: jax.Array, labels: jax.Array) -> jax.Array:
        """Grad-CAM of the last activations before pooling, float32 [B, h, w] in [0, 1].

        Args:
          state: as in `predict`.
          images: uint8 [B, S, S, 3].
          labels: int32 [B], the class to explain.
        """
        variables = state.averaged

        def forward(offset: jax.Array) -> tuple[jax.Array, jax.Array]:
            place = {pretrained.HEAD: {"features": offset}}
            output = self._judge({**variables, "perturbations": place}, images)
            return output.logits, output.features

        return grad_cam(forward, jax.eval_shape(self._judge, variables, images).features, labels)

    def judge(self, state: ClassifierState) -> tuple[nn.Module, PyTree]:
        """The network that predicts, of float images in [-1, 1], and its variables."""
        return self.network, state.averaged

    def _judge(self, variables: PyTree, images: jax.Array) -> ClassifierOutput:
        """The network's output for uint8 images, with running statistics."""
        output = self.network.apply(variables, augment.to_float(images), train=False)
        assert isinstance(output, ClassifierOutput)
        return output


def _own_network(make: Callable[..., Any], arguments: dict[str, Any], image_size: int) -> nn.Module:
    """A network of the user's own, tried on shapes alone.

    Raises:
      UserError: it cannot be made or called as networks are, or does not return what they return.
    """
    name = code.name_of(make)
    wanted = (
        f"config.model.network, {name}, must take {', '.join(arguments)}, and be called with "
        "images [B, H, W, 3] and train=True or False for a models.layers.ClassifierOutput with "
        f"logits [B, {arguments['num_classes']}]"
    )
    try:
        network = make(**arguments)
        images = jax.ShapeDtypeStruct((2, image_size, image_size, 3), jnp.float32)
        output, _ = jax.eval_shape(
            lambda key, x: network.init_with_output(key, x, train=False), jax.random.key(0), images
        )
    except Exception as error:  # it is the user's program
        raise UserError(f"{wanted}, but it fails: {first_line(error)}") from error
    if not isinstance(output, ClassifierOutput):
        raise UserError(f"{wanted}, but it returns {type(output).__name__}")
    if output.logits.shape != (2, arguments["num_classes"]):
        raise UserError(f"{wanted}, but it returns logits {list(output.logits.shape)} for B = 2")
    return network


def _growth(config: ConfigDict, steps_per_epoch: float) -> tuple[tuple[int, int], ...]:
    """First step and side of each size in training; refuses what does not fit."""
    sizes, epochs, largest = config.growth.sizes, config.growth.epochs, config.data.image_size
    if len(epochs) != max(len(sizes) - 1, 0):
        raise UserError(
            f"config.growth.epochs has {len(epochs)} numbers for the {len(sizes)} of "
            "config.growth.sizes; it takes one for each but the last, which lasts to the end"
        )
    for size in sizes:
        if not largest <= 2 * size <= 2 * largest:
            raise UserError(
                f"config.growth.sizes has {size}; with config.data.image_size={largest} it takes "
                f"{-(-largest // 2)} to {largest}"
            )
    per_dispatch = config.steps_per_dispatch
    begins = (0.0, *itertools.accumulate(epochs))
    # A dispatch has one size.
    firsts = [round(begin * steps_per_epoch / per_dispatch) * per_dispatch for begin in begins]
    return tuple(zip(firsts, sizes, strict=False))


def _submodules(network: nn.Module, image_size: int) -> list[str]:
    """Names of a network's submodules with parameters, in the order of their use."""
    names: list[str] = []

    def init(key: jax.Array, images: jax.Array) -> None:
        names.extend(network.init(key, images, train=False)["params"])

    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    jax.eval_shape(init, jax.random.key(0), images)
    return names


settle = settings.nothing_to_settle
epoch = settings.whole_split


def build(
    config: ConfigDict,
    classes: Sequence[str],
    class_counts: np.ndarray,
    num_steps: int,
    steps_per_epoch: float,
) -> Classifier:
    """The task of a configuration with the sections of a classifier; see `tasks.Kind`."""
    model, loss, data = config.model, config.loss, config.data
    arguments = {
        "num_classes": len(classes),
        "dropout": model.dropout,
        "dtype": settings.compute_dtype(config.precision),
        "width_multiplier": model.width_multiplier,
    }
    own = model.get("network")
    if own is None:
        network = MODELS[choice(model.name, tuple(MODELS), "model.name")](**arguments)
        if isinstance(network, DiscriminatorClassifier):
            settings.check_size(config.data.image_size)
    else:
        network = _own_network(own, arguments, data.image_size)
    submodules = []
    if config.optimizer.layer_decay < 1.0:
        submodules = _submodules(network, data.image_size)
    adjustment = None
    if loss.logit_adjustment:
        shares = settings.class_shares(data.sampling, data.sampling_exponent, class_counts)
        adjustment = np.float32(loss.logit_adjustment) * np.log(shares)
    return Classifier(
        network=network,
        image_size=data.image_size,
        weights=None if model.weights == NO_WEIGHTS else model.weights,
        optimizer=optimizers.fine_tuning(config.optimizer, num_steps, pretrained.HEAD, submodules),
        augmentation=settings.augmentation(config.augment),
        class_weights=settings.class_weights(loss.class_weights, class_counts),
        label_smoothing=loss.label_smoothing,
        ema_decay=config.ema_decay,
        growth=_growth(config, steps_per_epoch),
        mixup=loss.mixup,
        cutmix=loss.cutmix,
        adjustment=adjustment,
        score=_SCORES[config.best_by],
        self_training=SelfTraining(
            weight=loss.self_training,
            threshold=loss.pseudo_label_threshold,
            from_step=round(loss.pseudo_label_from_epoch * steps_per_epoch),
            labelled_share=config.data.labelled_share,
        ),
    )
