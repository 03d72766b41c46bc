"""A plain convolutional network, trained from scratch on images of 32 to 128 pixels."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from skin_jax.models.layers import (
    BatchNorm,
    ClassifierHead,
    ClassifierOutput,
    Conv,
    block_name,
)
from skin_jax.models.ops import max_pool


class Cnn(nn.Module):
    """Images to logits: stages of two 3x3 convolutions whose width doubles, pooled in between.

    `width_multiplier` scales the features of all stages, at least 1.
    """

    num_classes: int
    dropout: float = 0.0
    width_multiplier: float = 1.0
    widths: tuple[int, ...] = (24, 48, 96, 192)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> ClassifierOutput:
        """Return the output for images [B, H, W, 3] in [-1, 1] of any float dtype and size.

        The features are [B, ceil(H / 8), ceil(W / 8), 192]. With `train` batch norm uses the batch
        and updates `batch_stats`, else its running averages.
        """
        x = images.astype(self.dtype)
        for i, width in enumerate(self.widths):
            x = max_pool(x) if i > 0 else x
            for j in range(2):
                features = max(1, round(width * self.width_multiplier))
                x = ConvBlock(features, dtype=self.dtype, name=block_name(i, j))(x, train=train)
        return ClassifierHead(self.num_classes, self.dropout, name="head")(x, train=train)


class ConvBlock(nn.Module):
    """A 3x3 convolution, batch norm, ReLU."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Return [B, H, W, features] for x [B, H, W, C]."""
        x = Conv(self.features, 3, padding=1, dtype=self.dtype, name="conv")(x)
        return nn.relu(BatchNorm(dtype=self.dtype, name="norm")(x, train=train))
