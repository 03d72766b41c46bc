"""The networks of paper B: the DCGAN of Radford et al.

Radford, Metz, Chintala, "Unsupervised Representation Learning with Deep Convolutional Generative
Adversarial Networks", ICLR 2016 (arXiv:1511.06434), section 3.

Paper B takes it as it is: 64x64 pixels, a latent vector of length 100, `width` 64 in both networks.
Other sizes have one convolution more or fewer, and start from as many more or fewer channels.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from skin_jax.models.layers import (
    ProjectToMap,
    StridedConv,
    StridedConvTranspose,
    batch_norm,
    normal_init,
)

IMAGE_SIZES = (32, 64, 128)
_SMALLEST_MAP = 4


def check_image_size(size: int) -> None:
    """Raise ValueError unless `size` is one of IMAGE_SIZES."""
    if size not in IMAGE_SIZES:
        raise ValueError(f"the image size must be 32, 64 or 128, not {size}")


def _widths(image_size: int, width: int) -> list[int]:
    """Channels of the maps of half the image's size, a quarter, ... down to 4x4."""
    return [width * 2**i for i in range((image_size // _SMALLEST_MAP).bit_length() - 1)]


class Generator(nn.Module):
    """Noise to images: a 4x4 map, doubled by transposed convolutions up to the image size.

    Batch norm and ReLU follow every layer but the last, which tanh follows. The map of 4x4 has
    `width` * S/8 channels, each further one half as many; the last before the image has `width`.
    """

    image_size: int = 64
    width: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array, *, train: bool) -> jax.Array:
        """Return images [B, S, S, 3] float32 in [-1, 1] for noise z [B, Z] of any float dtype.

        With `train` batch norm uses the batch and updates `batch_stats`, else its running averages.

        Raises:
          ValueError: if the image size is none of IMAGE_SIZES.
        """
        check_image_size(self.image_size)
        first, *others = reversed(_widths(self.image_size, self.width))
        x = ProjectToMap(_SMALLEST_MAP, first, use_bias=False, dtype=self.dtype, name="layer1")(z)
        x = nn.relu(batch_norm(train=train, dtype=self.dtype, name="norm1")(x))
        for layer, channels in enumerate(others, start=2):
            x = StridedConvTranspose(
                channels, use_bias=False, dtype=self.dtype, name=f"layer{layer}"
            )(x)
            x = nn.relu(batch_norm(train=train, dtype=self.dtype, name=f"norm{layer}")(x))
        x = StridedConvTranspose(3, dtype=self.dtype, name=f"layer{len(others) + 2}")(x)
        return jnp.tanh(x.astype(jnp.float32))


class Discriminator(nn.Module):
    """Images to one logit: convolutions of stride 2 down to 4x4, then one output of all of it.

    Leaky ReLU (slope 0.2) follows each convolution, batch norm each but the first. The sigmoid of
    the paper belongs to the loss.
    """

    width: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Return logits [B] float32, of "real", for images [B, S, S, 3] of any float dtype.

        With `train` batch norm uses the batch and updates `batch_stats`, else its running averages.

        Raises:
          ValueError: if height or width is none of IMAGE_SIZES.
        """
        for size in images.shape[1:3]:
            check_image_size(size)
        x, widths = images, _widths(images.shape[1], self.width)
        for layer, channels in enumerate(widths, start=1):
            normed = layer > 1
            x = StridedConv(channels, use_bias=not normed, dtype=self.dtype, name=f"layer{layer}")(
                x
            )
            if normed:
                x = batch_norm(train=train, dtype=self.dtype, name=f"norm{layer}")(x)
            x = nn.leaky_relu(x, 0.2)
        # In float32 whatever the dtype: it is a small part of the work, and its sum is long.
        logits = nn.Dense(
            1, kernel_init=normal_init(), dtype=jnp.float32, name=f"layer{len(widths) + 1}"
        )(x.reshape(x.shape[0], -1))
        return logits[:, 0]
