"""Features of images by a trained network, in the same way for real and for generated ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from skin_jax.base import devices
from skin_jax.base.errors import UserError
from skin_jax.eval import inference
from skin_jax.models import pretrained
from skin_jax.models.layers import ClassifierOutput
from skin_jax.tasks.augment import to_float
from skin_jax.training.run import Trained

PyTree = Any

JUDGE_SIZE = 128
"""Side of the images that `efficientnet_lite` looks at.

Generated images have 64 to 224 pixels. Features at the network's own 224 would be of interpolated
pixels mostly, and take three times as long.
"""

_BATCH = 64


class Extractor:
    """Images uint8 [N, S, S, 3] of any size S -> features float32 [N, D].

    Images are resized on the devices, bilinearly with antialiasing, and rounded to 8 bits.

    Attributes:
      description: of the network and what it looks at, for reports.
      note: what a reader of its judgements has to know; "" for nothing.
    """

    def __init__(
        self,
        features: Callable[[PyTree, jax.Array], jax.Array],
        state: PyTree,
        *,
        image_size: int,
        mesh: Mesh,
        network: str,
        note: str = "",
    ):
        """Compiles on the first call, and again for images of another size.

        Args:
          features: a function of a state and uint8 [B, H, W, 3] that gives float32 [B, D].
          state: on the mesh, replicated.
          image_size: H = W of what `features` gets.
          mesh: the devices.
          network: its name, for `description`.
          note: the attribute.
        """
        size = f"{image_size}x{image_size}"
        self.description = f"{network}, of images at {size} (bilinear with antialiasing)"
        self.note = note

        def described(state: PyTree, images: jax.Array) -> jax.Array:
            return features(state, resized(images, image_size))

        self._features, self._state = inference.over_devices(described, mesh), state
        self._batch = -(-_BATCH // mesh.size) * mesh.size

    def __call__(self, images: np.ndarray, progress: str = "") -> np.ndarray:
        """The features of N > 0 images; `progress` names a bar on stderr, "" shows none.

        Raises:
          UserError: features that are not finite.
        """
        rows = []
        with tqdm(total=len(images), desc=progress, unit=" images", disable=not progress) as bar:
            for start in range(0, len(images), self._batch):
                batch = images[start : start + self._batch]
                # Always one size, so that it compiles once; the last image is repeated.
                indices = np.minimum(np.arange(self._batch), len(batch) - 1)
                values = np.asarray(self._features(self._state, batch[indices]), np.float32)
                rows.append(values[: len(batch)])
                bar.update(len(batch))
        found = np.concatenate(rows)
        if not np.isfinite(found).all():
            raise UserError(f"not all features of {self.description} are finite; take another")
        return found


def efficientnet_lite(
    weights: str, mesh: Mesh, flag: str = "--weights", note: str = ""
) -> Extractor:
    """Pooled features, D = 1280, of the EfficientNet-Lite that the weights are of, at 128x128.

    Raises:
      UserError: the weights, of a .safetensors file or an hf: name, cannot be read, or do not fit
        the network; it calls them by `flag`.
    """
    network, variables = pretrained.efficientnet_lite(weights, flag)

    def features(variables: PyTree, images: jax.Array) -> jax.Array:
        output = network.apply(variables, to_float(images), train=False)
        return cast(ClassifierOutput, output).pooled

    return Extractor(
        features,
        devices.to_global(variables, devices.replicated(mesh)),
        image_size=JUDGE_SIZE,
        mesh=mesh,
        network=f"{pretrained.title(network)} with {Path(weights).name}",
        note=note,
    )


def of_run(run: Trained, mesh: Mesh) -> Extractor:
    """Features of a run's best checkpoint, of images at its own size.

    Raises:
      UserError: its task has none, or it has no checkpoint.
    """
    describe, (state, step) = run.ability("features"), run.best_state(mesh)
    network = f"the run {run.name} ({run.config.task}) at step {step}"
    size = run.config.data.image_size
    return Extractor(describe, state, image_size=size, mesh=mesh, network=network)


def resized(images: jax.Array, size: int) -> jax.Array:
    """Square images uint8 [B, S, S, 3] at another size, as Pillow resizes them (bilinear)."""
    if images.shape[1] == size:
        return images
    shape = (images.shape[0], size, size, images.shape[3])
    exact = jax.image.resize(images.astype(jnp.float32), shape, "bilinear", antialias=True)
    return jnp.clip(jnp.round(exact), 0.0, 255.0).astype(jnp.uint8)
