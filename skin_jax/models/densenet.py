"""DenseNet-121 and its relatives with bottleneck layers and compression (DenseNet-BC).

Huang, Liu, van der Maaten, Weinberger, "Densely Connected Convolutional Networks", CVPR 2017,
table 1.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from skin_jax.models.layers import (
    BatchNorm,
    ClassifierHead,
    ClassifierOutput,
    Conv,
    he_init,
)
from skin_jax.models.ops import max_pool, normalize

_BOTTLENECK = 4

_init = he_init("fan_in")


def layer_name(block: int, index: int) -> str:
    """The name of a dense layer's submodule, both counted from 0."""
    return f"block{block}_layer{index}"


class DenseNet(nn.Module):
    """Images to logits: a stem, blocks of layers that see all before them; default DenseNet-121.

    `width_multiplier` scales the 32 features that a layer adds, and all others with them.
    """

    num_classes: int
    dropout: float = 0.0
    width_multiplier: float = 1.0
    block_sizes: tuple[int, ...] = (6, 12, 24, 16)
    dtype: Any = jnp.float32

    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> ClassifierOutput:
        """Return the output for images [B, H, W, 3] in [-1, 1] of any float dtype, H and W >= 29.

        The features are [B, h, w, 1024], h being ceil(H / 4) halved three times, rounded down. With
        `train` batch norm uses the batch and updates `batch_stats`, else its running averages.

        Raises:
          ValueError: if the images are too small for the three poolings.
        """
        growth = max(1, round(32 * self.width_multiplier))
        x = normalize(images, self.mean, self.std, self.dtype)
        x = Conv(2 * growth, 7, 2, 3, kernel_init=_init, dtype=self.dtype, name="stem_conv")(x)
        x = nn.relu(BatchNorm(dtype=self.dtype, name="stem_norm")(x, train=train))
        x = max_pool(x)
        for i, size in enumerate(self.block_sizes):
            if i > 0:
                if min(x.shape[1:3]) < 2:
                    H, W = images.shape[1:3]
                    raise ValueError(f"images of {H}x{W} are too small for this DenseNet")
                x = Transition(dtype=self.dtype, name=f"transition{i - 1}")(x, train=train)
            for j in range(size):
                layer = DenseLayer(growth, dtype=self.dtype, name=layer_name(i, j))
                x = jnp.concatenate([x, layer(x, train=train)], axis=-1)
        x = nn.relu(BatchNorm(dtype=self.dtype, name="last_norm")(x, train=train))
        return ClassifierHead(self.num_classes, self.dropout, name="head")(x, train=train)


class DenseLayer(nn.Module):
    """Norm, ReLU, 1x1 to 4 `growth` features; norm, ReLU, 3x3 to the `growth` features it adds."""

    growth: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Return [B, H, W, growth] for x [B, H, W, C]."""
        x = nn.relu(BatchNorm(dtype=self.dtype, name="norm1")(x, train=train))
        width = _BOTTLENECK * self.growth
        x = Conv(width, 1, kernel_init=_init, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(BatchNorm(dtype=self.dtype, name="norm2")(x, train=train))
        return Conv(self.growth, 3, 1, 1, kernel_init=_init, dtype=self.dtype, name="conv2")(x)


class Transition(nn.Module):
    """Norm, ReLU, 1x1 to half the features, mean over 2x2 pixels; an odd last one is left out."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Return [B, H // 2, W // 2, C // 2] for x [B, H, W, C]."""
        B, H, W, C = x.shape
        x = nn.relu(BatchNorm(dtype=self.dtype, name="norm")(x, train=train))
        x = Conv(C // 2, 1, kernel_init=_init, dtype=self.dtype, name="conv")(x)
        x = x[:, : H // 2 * 2, : W // 2 * 2]
        return jnp.mean(x.reshape(B, H // 2, 2, W // 2, 2, C // 2), axis=(2, 4))
