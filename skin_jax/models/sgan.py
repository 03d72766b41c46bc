"""The networks of paper A, section IV: the generator and the discriminator that also classifies.

Paper A is Rashid, Tanveer, Khan, "Skin Lesion Classification Using GAN based Data Augmentation",
IEEE EMBC 2019. Its networks have five layers each; it gives the kinds of layers and activations.
Kernels of 4x4 with stride 2, the widths and batch norm are those of Radford et al. 2015.
"""

from typing import Any, NamedTuple

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

SIZE_MULTIPLE = 32


class DiscriminatorOutput(NamedTuple):
    """What the discriminator says about a batch.

    logits: [B, num_outputs] float32: the classes and, last, "fake".
    features: [B, S/16, S/16, 8 width] of the network's dtype: the activations of the last
      convolution, which feature matching (Salimans et al. 2016, section 3.1) compares.
    """

    logits: jax.Array
    features: jax.Array


def check_image_size(size: int) -> None:
    """Raise ValueError unless `size` is a positive multiple of 32."""
    if size < SIZE_MULTIPLE or size % SIZE_MULTIPLE:
        raise ValueError(f"the image size must be a positive multiple of 32, not {size}")


class Generator(nn.Module):
    """Noise to images in exactly 5 transposed convolutions (paper A, section IV).

    The first makes a map of S/16 x S/16 from the noise vector, the others double it. ReLU follows
    the first four, tanh the last.
    """

    image_size: int
    width: int = 64
    batch_norm: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array, *, train: bool) -> jax.Array:
        """Return images [B, S, S, 3] float32 in [-1, 1] for noise z [B, Z] of any float dtype.

        With `train` batch norm uses the batch and updates `batch_stats`, else its running averages.

        Raises:
          ValueError: if the image size is not a multiple of 32.
        """
        check_image_size(self.image_size)

        def activate(x: jax.Array, layer: int) -> jax.Array:
            if self.batch_norm:
                x = batch_norm(train=train, dtype=self.dtype, name=f"norm{layer}")(x)
            return nn.relu(x)

        bias = not self.batch_norm
        x = ProjectToMap(
            self.image_size // 16, 8 * self.width, use_bias=bias, dtype=self.dtype, name="layer1"
        )(z)
        x = activate(x, 1)
        for layer, multiple in ((2, 4), (3, 2), (4, 1)):
            x = StridedConvTranspose(
                multiple * self.width, use_bias=bias, dtype=self.dtype, name=f"layer{layer}"
            )(x)
            x = activate(x, layer)
        x = StridedConvTranspose(3, dtype=self.dtype, name="layer5")(x)
        return jnp.tanh(x.astype(jnp.float32))


class Discriminator(nn.Module):
    """Images to n + 1 logits in exactly 5 layers: 4 convolutions and 1 fully connected layer.

    Leaky ReLU (slope 0.2, Radford et al. 2015) follows each convolution (paper A, section IV). The
    softmax of the paper's last layer belongs to the loss.
    """

    num_outputs: int = 8
    width: int = 64
    batch_norm: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> DiscriminatorOutput:
        """Return logits and features of images [B, S, S, 3] in [-1, 1] of any float dtype.

        With `train` batch norm, where it is on, uses the batch and updates `batch_stats`, else its
        running averages. It never follows the first layer.

        Raises:
          ValueError: if height or width is not a multiple of 32.
        """
        for size in images.shape[1:3]:
            check_image_size(size)
        x = images
        for layer, multiple in ((1, 1), (2, 2), (3, 4), (4, 8)):
            normed = self.batch_norm and layer > 1
            x = StridedConv(
                multiple * self.width, use_bias=not normed, dtype=self.dtype, name=f"layer{layer}"
            )(x)
            if normed:
                x = batch_norm(train=train, dtype=self.dtype, name=f"norm{layer}")(x)
            x = nn.leaky_relu(x, 0.2)
        if not self.is_initializing():  # it is no variable of the network
            # Adds `perturbations/features` where a caller gives it: a place to take gradients at.
            x = self.perturb("features", x)
        # In float32 whatever the dtype: it is a small part of the work, and its sums are long.
        logits = nn.Dense(
            self.num_outputs, kernel_init=normal_init(), dtype=jnp.float32, name="layer5"
        )(x.reshape(x.shape[0], -1))
        return DiscriminatorOutput(logits, x)
