"""EfficientNet-Lite0: the network for phones.

Tan, Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019, in
the Lite form of Google's release: no squeeze-and-excitation, ReLU6 instead of swish, and stem and
last convolution not scaled with the width.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from skin_jax.models.layers import (
    BatchNorm,
    ClassifierHead,
    ClassifierOutput,
    Conv,
    DepthwiseConv,
    block_name,
    normalize,
)


class Stage(NamedTuple):
    """`repeats` inverted residual blocks (Sandler et al., CVPR 2018); the first has the stride."""

    expansion: int
    features: int
    repeats: int
    kernel_size: int
    stride: int


LITE0 = (
    Stage(1, 16, 1, 3, 1),
    Stage(6, 24, 2, 3, 2),
    Stage(6, 40, 2, 5, 2),
    Stage(6, 80, 3, 3, 2),
    Stage(6, 112, 3, 5, 1),
    Stage(6, 192, 4, 5, 2),
    Stage(6, 320, 1, 3, 1),
)
"""Table 1 of the paper (B0)."""


class EfficientNetLite0(nn.Module):
    """Images to logits: a stem, seven stages of inverted residual blocks, a last convolution.

    `width_multiplier` scales the features of the stages, to multiples of 8. TensorFlow's padding,
    and its settings of batch norm: epsilon 1e-3, momentum 0.99.
    """

    num_classes: int
    dropout: float = 0.0
    width_multiplier: float = 1.0
    stages: tuple[Stage, ...] = LITE0
    stem_features: int = 32
    last_features: int = 1280
    dtype: Any = jnp.float32

    mean = (0.5, 0.5, 0.5)
    std = (0.5, 0.5, 0.5)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> ClassifierOutput:
        """Return the output for images [B, H, W, 3] in [-1, 1] of any float dtype and size.

        The features are [B, ceil(H / 32), ceil(W / 32), 1280]. With `train` batch norm uses the
        batch and updates `batch_stats`, else its running averages.
        """
        x = normalize(images, self.mean, self.std, self.dtype)
        x = Conv(self.stem_features, 3, 2, "SAME", dtype=self.dtype, name="stem_conv")(x)
        x = nn.relu6(_norm(self.dtype, "stem_norm")(x, train=train))
        for i, stage in enumerate(self.stages):
            features = _scaled(stage.features, self.width_multiplier)
            for j in range(stage.repeats):
                x = InvertedResidual(
                    stage.expansion,
                    features,
                    stage.kernel_size,
                    stage.stride if j == 0 else 1,
                    dtype=self.dtype,
                    name=block_name(i, j),
                )(x, train=train)
        x = Conv(self.last_features, 1, dtype=self.dtype, name="last_conv")(x)
        x = nn.relu6(_norm(self.dtype, "last_norm")(x, train=train))
        return ClassifierHead(self.num_classes, self.dropout, name="head")(x, train=train)


class InvertedResidual(nn.Module):
    """Expand by 1x1 (unless `expansion` is 1), filter each channel, project by 1x1, add the input.

    The input is added where the shape stays the same; nothing follows the projection's norm.
    """

    expansion: int
    features: int
    kernel_size: int
    stride: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Return [B, ceil(H / stride), ceil(W / stride), features] for x [B, H, W, C]."""
        shortcut = x
        if self.expansion != 1:
            expanded = self.expansion * x.shape[-1]
            x = Conv(expanded, 1, dtype=self.dtype, name="expand_conv")(x)
            x = nn.relu6(_norm(self.dtype, "expand_norm")(x, train=train))
        x = DepthwiseConv(self.kernel_size, self.stride, dtype=self.dtype, name="depthwise_conv")(x)
        x = nn.relu6(_norm(self.dtype, "depthwise_norm")(x, train=train))
        x = Conv(self.features, 1, dtype=self.dtype, name="project_conv")(x)
        x = _norm(self.dtype, "project_norm")(x, train=train)
        return x + shortcut if x.shape == shortcut.shape else x


def _norm(dtype: Any, name: str) -> BatchNorm:
    return BatchNorm(momentum=0.99, epsilon=1e-3, dtype=dtype, name=name)


def _scaled(features: int, multiplier: float) -> int:
    """The multiple of 8 that is nearest, at least 8."""
    return max(8, int(features * multiplier + 4) // 8 * 8)
