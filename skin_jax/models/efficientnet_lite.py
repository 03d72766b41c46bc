"""EfficientNet-Lite0 to Lite4: the networks for phones.

Tan, Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019, in
the Lite form of Google's release: no squeeze-and-excitation, ReLU6 instead of swish, and stem, last
convolution, first and last stage not scaled with width (the former) and depth (the latter).
"""

import math
from typing import Any, Literal, NamedTuple

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
)
from skin_jax.models.ops import normalize


class Stage(NamedTuple):
    """`repeats` inverted residual blocks (Sandler et al., CVPR 2018); the first has the stride."""

    expansion: int
    features: int
    repeats: int
    kernel_size: int
    stride: int


_B0 = (
    Stage(1, 16, 1, 3, 1),
    Stage(6, 24, 2, 3, 2),
    Stage(6, 40, 2, 5, 2),
    Stage(6, 80, 3, 3, 2),
    Stage(6, 112, 3, 5, 1),
    Stage(6, 192, 4, 5, 2),
    Stage(6, 320, 1, 3, 1),
)
"""Table 1 of the paper."""


def _stages(width: float, depth: float) -> tuple[Stage, ...]:
    """Scale B0's features to multiples of 8, no more than a tenth down, and its repeats up."""
    inner = _B0[1:-1]
    return tuple(
        stage._replace(
            features=_scaled(stage.features, width, least=0.9),
            repeats=math.ceil(stage.repeats * depth) if stage in inner else stage.repeats,
        )
        for stage in _B0
    )


def _scaled(features: int, multiplier: float, least: float = 0.0) -> int:
    """The multiple of 8 that is nearest, at least 8; the next one where it is below that share."""
    near = max(8, int(features * multiplier + 4) // 8 * 8)
    return near if near >= least * features * multiplier else near + 8


LITE = tuple(
    _stages(*multipliers)
    for multipliers in ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8))
)
"""The stages of Lite0 to Lite4."""

IMAGE_SIZES = (224, 240, 260, 280, 300)
"""The sizes of image that Lite0 to Lite4 were trained at."""


def lite(n: int, num_classes: int, **settings: Any) -> "EfficientNetLite":
    """Return EfficientNet-Lite`n`; `settings` are other fields of `EfficientNetLite`."""
    return EfficientNetLite(num_classes, stages=LITE[n], native_size=IMAGE_SIZES[n], **settings)


class EfficientNetLite(nn.Module):
    """Images to logits: a stem, seven stages of inverted residual blocks, a last convolution.

    `width_multiplier` scales the features of the stages once more, to multiples of 8. TensorFlow's
    settings of batch norm (epsilon 1e-3, momentum 0.99), and at `native_size` its padding: a map of
    an even size has the odd row and column last, of an odd size it has as many on all sides. At
    other sizes a convolution of stride 2 keeps the padding that it was trained with where that
    halves the map too, so that its windows lie where they lay.
    """

    num_classes: int
    dropout: float = 0.0
    width_multiplier: float = 1.0
    stages: tuple[Stage, ...] = LITE[0]
    native_size: int = IMAGE_SIZES[0]
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
        native = -(-self.native_size // 2)
        x = nn.relu6(_norm(self.dtype, "stem_norm")(x, train=train))
        for i, stage in enumerate(self.stages):
            features = _scaled(stage.features, self.width_multiplier)
            for j in range(stage.repeats):
                x = InvertedResidual(
                    stage.expansion,
                    features,
                    stage.kernel_size,
                    stage.stride if j == 0 else 1,
                    "SAME" if native % 2 == 0 else stage.kernel_size // 2,
                    dtype=self.dtype,
                    name=block_name(i, j),
                )(x, train=train)
            native = -(-native // stage.stride)
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
    padding: int | Literal["SAME"] = "SAME"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Return [B, ceil(H / stride), ceil(W / stride), features] for x [B, H, W, C]."""
        shortcut = x
        if self.expansion != 1:
            expanded = self.expansion * x.shape[-1]
            x = Conv(expanded, 1, dtype=self.dtype, name="expand_conv")(x)
            x = nn.relu6(_norm(self.dtype, "expand_norm")(x, train=train))
        x = DepthwiseConv(
            self.kernel_size, self.stride, self.padding, dtype=self.dtype, name="depthwise_conv"
        )(x)
        x = nn.relu6(_norm(self.dtype, "depthwise_norm")(x, train=train))
        x = Conv(self.features, 1, dtype=self.dtype, name="project_conv")(x)
        x = _norm(self.dtype, "project_norm")(x, train=train)
        return x + shortcut if x.shape == shortcut.shape else x


def _norm(dtype: Any, name: str) -> BatchNorm:
    return BatchNorm(momentum=0.99, epsilon=1e-3, dtype=dtype, name=name)


def taps(network: EfficientNetLite, variables: Any, images: jax.Array) -> tuple[jax.Array, ...]:
    """Return what the last block of each stride gives in evaluation, from stride 4 on.

    Args:
      network: its head and last convolution are not used; jitted, they are not computed.
      variables: of the network, `params` and `batch_stats`.
      images: [B, H, W, 3] in [-1, 1], any float dtype.

    Returns:
      For Lite0 to Lite4 four arrays [B, ceil(H / s), ceil(W / s), C], s = 4, 8, 16 and 32, of the
      network's dtype.
    """
    stride, last = 2, {}
    for i, stage in enumerate(network.stages):
        stride *= stage.stride
        last[stride] = block_name(i, stage.repeats - 1)
    blocks = [block for stride, block in last.items() if stride >= 4]
    _, state = network.apply(
        variables,
        images,
        train=False,
        mutable=["intermediates"],
        capture_intermediates=lambda module, method: module.name in blocks,
    )
    return tuple(state["intermediates"][block]["__call__"][0] for block in blocks)
