"""The networks of both papers' GANs, which have the layers of the DCGAN of Radford et al.

Radford, Metz, Chintala, "Unsupervised Representation Learning with Deep Convolutional Generative
Adversarial Networks", ICLR 2016 (arXiv:1511.06434), section 3: kernels of 4x4 with stride 2.

Paper B takes it as it is: 64x64 pixels from a map of 4x4, batch norm, a latent vector of length
100, `width` 64. Other sizes have one doubling more or fewer.

Paper A (Rashid, Tanveer, Khan, "Skin Lesion Classification Using GAN based Data Augmentation", IEEE
EMBC 2019, section IV) has five layers in each network at any size, so four doublings, and gives the
kinds of layers and activations; kernels, widths and batch norm are those of Radford et al.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from skin_jax.models.layers import (
    ClassifierOutput,
    Conv,
    ProjectToMap,
    StridedConvTranspose,
    UpsampledConv,
    normal_init,
)

_DOUBLINGS = {32: 3, 64: 4, 128: 5}


class DiscriminatorOutput(NamedTuple):
    """The discriminator's output for a batch.

    logits: [B, num_outputs] float32.
    features: [B, S / 2^doublings, ..., C] of the network's dtype: the activations of the last
      convolution, which feature matching (Salimans et al. 2016, section 3.1) compares.
    """

    logits: jax.Array
    features: jax.Array


def doublings_from_4x4(size: int) -> int:
    """Return how often paper B's networks double a 4x4 map to reach an image of `size`.

    Raises:
      ValueError: unless `size` is 32, 64 or 128.
    """
    if size not in _DOUBLINGS:
        raise ValueError(f"the image size must be 32, 64 or 128, not {size}")
    return _DOUBLINGS[size]


def check_image_size(size: int, doublings: int = 4) -> None:
    """Raise ValueError unless `size` is what `doublings` make of a map of 2x2, 4x4, 6x6, ..."""
    multiple = 2 ** (doublings + 1)
    if size < multiple or size % multiple:
        raise ValueError(f"the image size must be a positive multiple of {multiple}, not {size}")


class Generator(nn.Module):
    """Noise to images: a map of S / 2^doublings, doubled by transposed convolutions up to S.

    Batch norm (where it is on) and ReLU follow every layer but the last, which tanh follows. The
    last map before the image has `width` channels, each earlier one twice as many. With
    `upsampled_image` the last layer is bilinear upsampling and a convolution of 3x3, which leaves
    no grid of its own (Odena et al., "Deconvolution and Checkerboard Artifacts", Distill 2016).
    """

    image_size: int
    width: int = 64
    batch_norm: bool = True
    doublings: int = 4
    upsampled_image: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array, *, train: bool) -> jax.Array:
        """Return images [B, S, S, 3] float32 in [-1, 1] for noise z [B, Z] of any float dtype.

        With `train` batch norm uses the batch and updates `batch_stats`, else its running averages.

        Raises:
          ValueError: if `doublings` do not lead to the image size, see `check_image_size`.
        """
        check_image_size(self.image_size, self.doublings)
        x = z
        for i in range(self.doublings):
            kind: Any = StridedConvTranspose
            if i == 0:
                kind = functools.partial(ProjectToMap, size=self.image_size >> self.doublings)
            x = kind(
                self.width * 2 ** (self.doublings - 1 - i),
                use_bias=not self.batch_norm,
                dtype=self.dtype,
                name=f"layer{i + 1}",
            )(x)
            if self.batch_norm:
                x = _norm(train, self.dtype, f"norm{i + 1}")(x)
            x = nn.relu(x)
        last: Any = UpsampledConv if self.upsampled_image else StridedConvTranspose
        x = last(3, use_bias=True, dtype=self.dtype, name=f"layer{self.doublings + 1}")(x)
        return jnp.tanh(x.astype(jnp.float32))


class Discriminator(nn.Module):
    """Images to logits: convolutions of stride 2 down to S / 2^doublings, a fully connected layer.

    Leaky ReLU (slope 0.2) follows each convolution, batch norm (where it is on) each but the first.
    With `spectral_norm` all convolutions have it; the last layer, whose logits tell classes, has
    not. Softmax and sigmoid belong to the loss.
    """

    num_outputs: int
    width: int = 64
    batch_norm: bool = False
    doublings: int = 4
    spectral_norm: bool = False
    kernel_size: int = 4
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> DiscriminatorOutput:
        """Return logits and features of images [B, S, S, 3] in [-1, 1] of any float dtype.

        With `train` batch norm uses the batch and updates `batch_stats`, else its running averages.

        Raises:
          ValueError: if height or width does not fit `doublings`, see `check_image_size`.
        """
        for size in images.shape[1:3]:
            check_image_size(size, self.doublings)
        x = images
        for i in range(self.doublings):
            normed = self.batch_norm and i > 0
            x = Conv(
                self.width * 2**i,
                *(self.kernel_size, 2, (self.kernel_size - 1) // 2),
                kernel_init=normal_init(),
                use_bias=not normed,
                spectral_norm=self.spectral_norm,
                dtype=self.dtype,
                name=f"layer{i + 1}",
            )(x)
            if normed:
                x = _norm(train, self.dtype, f"norm{i + 1}")(x)
            x = nn.leaky_relu(x, 0.2)
        if not self.is_initializing():  # it is no variable of the network
            # Adds `perturbations/features` where a caller gives it: a place to take gradients at.
            x = self.perturb("features", x)
        flat = nn.Dropout(self.dropout, deterministic=not train)(x.reshape(x.shape[0], -1))
        # In float32 whatever the dtype: it is a small part of the work, and its sums are long.
        logits = nn.Dense(
            self.num_outputs,
            kernel_init=normal_init(),
            dtype=jnp.float32,
            name=f"layer{self.doublings + 1}",
        )(flat)
        return DiscriminatorOutput(logits, x)


class DiscriminatorClassifier(nn.Module):
    """The discriminator as a plain classifier: what a GAN adds shows next to it.

    `width` is 64 times the multiplier. All of it is called `head`: nothing of it is pretrained.
    """

    num_classes: int
    dropout: float = 0.0
    width_multiplier: float = 1.0
    batch_norm: bool = False
    spectral_norm: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> ClassifierOutput:
        """Return the output for images [B, S, S, 3] in [-1, 1], S a multiple of 32.

        `train` is as in `Discriminator`; with dropout it needs that rng.
        """
        logits, features = Discriminator(
            self.num_classes,
            max(1, round(64 * self.width_multiplier)),
            self.batch_norm,
            spectral_norm=self.spectral_norm,
            dropout=self.dropout,
            dtype=self.dtype,
            name="head",
        )(images, train=train)
        pooled = jnp.mean(features.astype(jnp.float32), axis=(1, 2))
        return ClassifierOutput(logits, features, pooled)


def _norm(train: bool, dtype: Any, name: str) -> nn.BatchNorm:
    # Flax's batch norm; all other networks have `layers.BatchNorm`. The two round differently, and
    # a seed of these GANs must give the same bits as before. Here the other one would save nothing:
    # a training step would take 1.02 times the processor time.
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=dtype, name=name)
