"""ResNet-50 (v1.5) and its relatives with bottleneck blocks.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, table 1. v1.5 has
the stride in the 3x3 convolution of a block, not in its first 1x1 convolution, as torchvision and
timm have it.
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
    block_name,
)
from skin_jax.models.ops import max_pool, normalize

_EXPANSION = 4


class ResNet(nn.Module):
    """Images to logits: a stem, stages of bottleneck blocks whose width doubles; default ResNet-50.

    `width_multiplier` scales the 64 features of the stem, and all others with them.
    """

    num_classes: int
    dropout: float = 0.0
    width_multiplier: float = 1.0
    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
    dtype: Any = jnp.float32

    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> ClassifierOutput:
        """Return the output for images [B, H, W, 3] in [-1, 1] of any float dtype and size.

        The features are [B, ceil(H / 32), ceil(W / 32), 2048]. With `train` batch norm uses the
        batch and updates `batch_stats`, else its running averages.
        """
        width = max(1, round(64 * self.width_multiplier))
        x = normalize(images, self.mean, self.std, self.dtype)
        x = Conv(width, 7, 2, 3, dtype=self.dtype, name="stem_conv")(x)
        x = nn.relu(BatchNorm(dtype=self.dtype, name="stem_norm")(x, train=train))
        x = max_pool(x)
        for i, size in enumerate(self.stage_sizes):
            for j in range(size):
                stride = 2 if i > 0 and j == 0 else 1
                x = Bottleneck(width * 2**i, stride, dtype=self.dtype, name=block_name(i, j))(
                    x, train=train
                )
        return ClassifierHead(self.num_classes, self.dropout, name="head")(x, train=train)


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1 to 4 `width` features; then the input is added.

    The input passes a 1x1 convolution of its own where its shape is another. The last norm begins
    with a scale of 0, so that the block begins as the identity (Goyal et al. 2017, section 5.1).
    """

    width: int
    stride: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Return [B, ceil(H / stride), ceil(W / stride), 4 width] for x [B, H, W, C]."""
        features = _EXPANSION * self.width
        y = Conv(self.width, 1, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(BatchNorm(dtype=self.dtype, name="norm1")(y, train=train))
        y = Conv(self.width, 3, self.stride, 1, dtype=self.dtype, name="conv2")(y)
        y = nn.relu(BatchNorm(dtype=self.dtype, name="norm2")(y, train=train))
        y = Conv(features, 1, dtype=self.dtype, name="conv3")(y)
        zeros = nn.initializers.zeros
        y = BatchNorm(scale_init=zeros, dtype=self.dtype, name="norm3")(y, train=train)
        if self.stride != 1 or x.shape[-1] != features:
            x = Conv(features, 1, self.stride, dtype=self.dtype, name="shortcut_conv")(x)
            x = BatchNorm(dtype=self.dtype, name="shortcut_norm")(x, train=train)
        return nn.relu(x + y)
