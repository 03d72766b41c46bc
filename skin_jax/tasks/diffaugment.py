"""Augmentation that both players of a GAN see, and that gradients pass through.

Zhao, Liu, Lin, Zhu, Han, "Differentiable Augmentation for Data-Efficient GAN Training", NeurIPS
2020. Images are moved by matrix products, not by gathers, whose gradients scatter.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class DiffAugment:
    """Strengths of the augmentations, in this order; each is drawn uniformly for each image.

    color: 1 is the paper's: brightness is shifted by up to 0.5, saturation scaled by 0 to 2,
      contrast by 0.5 to 1.5; 0 is off. Half of it has half of these ranges.
    translation: largest shift as a share of the side, 1/8 in the paper; what comes from outside is
      grey.
    cutout: side of a grey square as a share of the side, its middle anywhere in the image; 1/2 in
      the paper, 0.2 in that of projected GANs.
    """

    color: float = 1.0
    translation: float = 0.125
    cutout: float = 0.2


def diffaugment(images: jax.Array, keys: jax.Array, options: DiffAugment) -> jax.Array:
    """Augment each image with its own key.

    Args:
      images: float [B, S, S, 3] in [-1, 1].
      keys: [B] typed keys.
      options: what to do; static under `jit`.

    Returns:
      float [B, S, S, 3], not cut to [-1, 1], of the dtype of `images`.
    """
    size = images.shape[1]
    draws = jax.vmap(lambda key: jax.random.uniform(key, (7,)))(keys)
    x = images
    if options.color > 0.0:
        x = _recolored(x, options.color * (2.0 * draws[:, :3] - 1.0))
    if options.translation > 0.0:
        largest = round(options.translation * size)
        shifts = jnp.floor(draws[:, 3:5] * (2 * largest + 1)).astype(jnp.int32) - largest
        x = _moved(x, shifts)
    if options.cutout > 0.0:
        x = _with_hole(x, draws[:, 5:], round(options.cutout * size))
    return x.astype(images.dtype)


def _recolored(x: jax.Array, strengths: jax.Array) -> jax.Array:
    """Brightness, saturation and contrast by `strengths` [B, 3], in [-1, 1]."""
    brightness, saturation, contrast = (s[:, None, None, None] for s in strengths.T)
    x = x + 0.5 * brightness
    grey = jnp.mean(x, axis=3, keepdims=True)
    x = grey + (1.0 + saturation) * (x - grey)
    mean = jnp.mean(x, axis=(1, 2, 3), keepdims=True)
    return mean + (1.0 + 0.5 * contrast) * (x - mean)


def _moved(x: jax.Array, shifts: jax.Array) -> jax.Array:
    """The images moved down and to the right by `shifts` int [B, 2], in pixels."""
    places = jnp.arange(x.shape[1])
    source = places[None, None, :, None] - shifts[:, :, None, None]
    chosen = places[None, None, None, :] == source
    rows, columns = jnp.moveaxis(chosen.astype(x.dtype), 1, 0)  # [B, to, from] each
    # The multiplication by 0 and 1 is exact at the highest precision.
    return jnp.einsum("bij,bjkc,blk->bilc", rows, x, columns, precision="highest")


def _with_hole(x: jax.Array, middles: jax.Array, side: int) -> jax.Array:
    """The images with a square of `side` pixels at 0; `middles` [B, 2] are shares of the image."""
    size = x.shape[1]
    first = jnp.floor(middles * (size + 1 - side % 2)).astype(jnp.int32) - side // 2
    offsets = jnp.arange(size)[None, None] - first[:, :, None]
    rows, columns = jnp.moveaxis((offsets >= 0) & (offsets < side), 1, 0)
    hole = rows[:, :, None, None] & columns[:, None, :, None]
    return jnp.where(hole, jnp.zeros((), x.dtype), x)
