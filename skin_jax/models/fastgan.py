"""The networks of a class-conditional projected GAN for few images.

The generator is the light one of Liu, Zhu, Song, Elgammal, "Towards Faster and Stabilized GAN
Training for High-fidelity Few-shot Image Synthesis", ICLR 2021, as Sauer, Chitta, Mueller, Geiger,
"Projected GANs Converge Faster", NeurIPS 2021 have it. Their discriminators see features of a
frozen EfficientNet-Lite0, mixed by fixed random projections.

Conditioning on the class can be switched on in steps: `ramp` scales all that depends on the class
(Shahbazi, Danelljan, Paudel, Van Gool, "Collapse by Conditioning", ICLR 2022).
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from skin_jax.models import efficientnet_lite
from skin_jax.models.efficientnet_lite import EfficientNetLite
from skin_jax.models.layers import BatchNorm, Conv, ProjectToMap, UpsampledConv, normal_init

IMAGE_SIZES = (32, 64, 128, 256)

SMALLEST_SIZE = 128
"""Of the images that the frozen network sees: the deepest of its maps is 4x4."""

# The channels of a map of each size, as a multiple of the width.
_CHANNELS = {4: 16.0, 8: 8.0, 16: 4.0, 32: 2.0, 64: 2.0, 128: 1.0, 256: 0.5}

# A map of each size is scaled, channel by channel, by what a small map says.
_SKIPS = {64: 4, 128: 8, 256: 16}

_CONDITIONAL_FROM = 16
_EMBEDDING = 128
_PROJECTION = 64

_conv = functools.partial(Conv, kernel_init=normal_init(), spectral_norm=True)
_upsampled = functools.partial(UpsampledConv, spectral_norm=True)
_to_map = functools.partial(ProjectToMap, spectral_norm=True)


def check_image_size(size: int) -> None:
    """Raise ValueError unless `size` is one of IMAGE_SIZES."""
    if size not in IMAGE_SIZES:
        raise ValueError(f"the image size must be 32, 64, 128 or 256, not {size}")


class Generator(nn.Module):
    """Noise and classes to images: a 4x4 map, doubled with bilinear interpolation up to S.

    Every convolution is spectrally normalised; batch norm and a gated linear unit follow. From
    16x16 on a class changes scale and bias of the norm, so that classes share coarse structure.

    A map of 64x64 has twice `width` channels, one of 4x4 16 times.
    """

    image_size: int
    width: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        z: jax.Array,
        classes: jax.Array,
        ramp: jax.Array | float = 1.0,
        *,
        train: bool,
    ) -> jax.Array:
        """Return images [B, S, S, 3] float32 in [-1, 1].

        Args:
          z: float [B, Z], in training on the sphere of radius sqrt(Z); the paper has Z = 256.
          classes: float [B, K], shares of the classes: one-hot, or between two of them.
          ramp: [] in [0, 1]; at 0 images do not depend on the classes.
          train: batch norm uses the batch and updates `batch_stats`, else its running averages; the
            vectors of spectral norm are updated wherever `batch_stats` is mutable.

        Raises:
          ValueError: if the image size is none of IMAGE_SIZES.
        """
        check_image_size(self.image_size)
        embedding = (ramp * _embedded(self, "embedding", classes, _EMBEDDING))[:, None, None]
        x = z
        maps: dict[int, jax.Array] = {}
        for size in [4 << i for i in range((self.image_size // 4).bit_length())]:
            width = max(1, round(self.width * _CHANNELS[size]))
            if size == 4:
                x = _to_map(2 * width, size, dtype=self.dtype, name="layer4")(x)
            else:
                x = _upsampled(2 * width, dtype=self.dtype, name=f"layer{size}")(x)
            of_class = {}
            if size >= _CONDITIONAL_FROM:
                for kind in ("gain", "shift"):
                    linear = _conv(2 * width, 1, dtype=self.dtype, name=f"class{size}_{kind}")
                    of_class[kind] = linear(embedding)
            x = BatchNorm(dtype=self.dtype, name=f"norm{size}")(x, train=train, **of_class)
            x = x[..., :width] * nn.sigmoid(x[..., width:])
            if size in _SKIPS:
                x = x * self._excitation(maps[_SKIPS[size]], width, f"skip{size}")
            maps[size] = x
        x = _conv(3, 3, padding=1, use_bias=True, dtype=self.dtype, name="image")(x)
        return jnp.tanh(x.astype(jnp.float32))

    def _excitation(self, small: jax.Array, features: int, name: str) -> jax.Array:
        """A factor in [0, 1] for each channel: [B, 1, 1, features]."""
        B, H, W, C = small.shape
        pooled = jnp.mean(small.reshape(B, 4, H // 4, 4, W // 4, C), axis=(2, 4))
        x = _conv(features, 4, dtype=self.dtype, name=f"{name}_squeeze")(pooled)
        x = _conv(features, 1, dtype=self.dtype, name=f"{name}_excite")(nn.swish(x))
        return nn.sigmoid(x)


class Discriminator(nn.Module):
    """A discriminator for each map of features: convolutions of stride 2 down to maps of logits.

    The first, of the largest map, has most convolutions, the last has one. Batch norm and leaky
    ReLU (slope 0.2) follow each; all are spectrally normalised. A logit is that of "real" plus,
    scaled by the ramp, the product with an embedding of the class (Miyato, Koyama, "cGANs with
    Projection Discriminator", ICLR 2018). `width` is 64 in the paper.
    """

    width: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        features: Sequence[jax.Array],
        classes: jax.Array,
        ramp: jax.Array | float = 1.0,
        *,
        train: bool,
    ) -> jax.Array:
        """Return all logits [B, N] float32, as many of each discriminator.

        Args:
          features: `projected`: [B, h, w, C] of any float dtype, each half as large as the one
            before.
          classes: float [B, K], one-hot.
          ramp: [] in [0, 1]; at 0 logits do not depend on the classes.
          train: as in `Generator`.

        Raises:
          ValueError: if the last of the features is smaller than 8x8.
        """
        if min(features[-1].shape[1:3]) < 8:
            raise ValueError(
                f"features of {features[-1].shape[1]}x{features[-1].shape[2]} are too small: the "
                f"frozen network must see images of at least {SMALLEST_SIZE}x{SMALLEST_SIZE}"
            )
        logits = []
        for i, x in enumerate(features):
            for j in range(len(features) - i):
                features_out, name = self.width * 2 ** (i + j), f"scale{i}_layer{j + 1}"
                x = _conv(features_out, 4, 2, 1, dtype=self.dtype, name=name)(x)
                x = BatchNorm(dtype=self.dtype, name=f"scale{i}_norm{j + 1}")(x, train=train)
                x = nn.leaky_relu(x, 0.2)
            # In float32 whatever the dtype: it is a small part of the work, and its sums are long.
            real, projection = (
                _conv(n, 4, name=f"scale{i}_{name}")(x)
                for n, name in ((1, "real"), (_PROJECTION, "projection"))
            )
            embedding = _embedded(self, f"scale{i}_embedding", classes, _PROJECTION)
            of_class = jnp.einsum("bhwc,bc->bhw", projection, embedding) / _PROJECTION**0.5
            logits.append((real[..., 0] + ramp * of_class).reshape(len(x), -1))
        return jnp.concatenate(logits, axis=1)


def mixing(seed: int, channels: Sequence[int], width: int = 64) -> list[tuple[np.ndarray, ...]]:
    """Draw the fixed random projections of features, see `projected`.

    As in the paper, a 1x1 convolution takes each map to width, 2 width, ... channels (mixing across
    channels), the next deeper map is added at twice its size, and another 1x1 convolution halves
    the channels of all but the largest map (mixing across scales). No activation comes between the
    two, so one matrix does both. Entries are drawn from N(0, 1 / inputs).

    Args:
      seed: of all the numbers.
      channels: of the features, from the largest map to the smallest.
      width: 64 in the paper.

    Returns:
      For each map a matrix [channels, outputs] for the map and, but for the last one, a matrix
      [outputs of the next deeper map, outputs] for that; float32.
    """
    rng = np.random.default_rng([seed, len(channels), width])
    matrices = []
    for i, inputs in enumerate(channels):
        inner, outputs = width * 2**i, width * 2 ** max(i - 1, 0)
        across_channels = rng.normal(0.0, inputs**-0.5, (inputs, inner))
        across_scales = rng.normal(0.0, inner**-0.5, (inner, outputs))
        both = across_channels @ across_scales
        used = (both,) if i == len(channels) - 1 else (both, across_scales)
        matrices.append(tuple(matrix.astype(np.float32) for matrix in used))
    return matrices


def channels(network: EfficientNetLite) -> list[int]:
    """Return the channels of `efficientnet_lite.taps` of a network, for `mixing`."""
    images = jax.ShapeDtypeStruct((1, SMALLEST_SIZE, SMALLEST_SIZE, 3), jnp.float32)

    def taps(images: jax.Array) -> tuple[jax.Array, ...]:
        variables = network.init(jax.random.key(0), images, train=False)
        return efficientnet_lite.taps(network, variables, images)

    return [each.shape[-1] for each in jax.eval_shape(taps, images)]


def projected(
    network: EfficientNetLite,
    variables: Any,
    images: jax.Array,
    matrices: Sequence[tuple[np.ndarray, ...]],
    size: int = 224,
) -> tuple[jax.Array, ...]:
    """Return mixed features of images, for `Discriminator`; the images have a gradient.

    Args:
      network: frozen, used in evaluation.
      variables: of the network, `params` and `batch_stats`.
      images: float [B, S, S, 3] in [-1, 1].
      matrices: `mixing`.
      size: the network sees images resized to it, bilinearly; a multiple of 32, at least
        SMALLEST_SIZE.

    Returns:
      For each stride of `efficientnet_lite.taps` a map of twice its height and width, of the
      network's dtype.
    """
    taps = efficientnet_lite.taps(network, variables, _resized(images, size))
    mixed: list[jax.Array] = []
    for features, (own, *deeper) in reversed(list(zip(taps, matrices, strict=True))):
        x = features @ own.astype(features.dtype)
        if deeper:
            x = x + mixed[-1] @ deeper[0].astype(features.dtype)
        mixed.append(_resized(x, 2 * x.shape[1]))
    return tuple(reversed(mixed))


def _embedded(module: nn.Module, name: str, classes: jax.Array, features: int) -> jax.Array:
    """The mean embedding of the classes by their shares: float32 [B, features]."""
    shape = (classes.shape[-1], features)
    return classes @ module.param(name, normal_init(1.0), shape, jnp.float32)


def _resized(x: jax.Array, size: int) -> jax.Array:
    """[B, S, S, C] as [B, size, size, C], bilinearly, with antialiasing where it gets smaller."""
    return jax.image.resize(x, (len(x), size, size, x.shape[-1]), "bilinear").astype(x.dtype)
