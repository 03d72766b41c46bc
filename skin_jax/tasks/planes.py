"""Moving and blurring images without gathers, by products with matrices of weights: for TPUs.

A TPU pads the last axis of what it gathers to 128, and a pixel has three channels: gathered, the
augmentation of a step moves more bytes than all of its convolutions. Here, images are planes, and
an affine map is done along one axis after the other (Catmull and Smith, "3-D Transformations of
Images in Scanline Order", SIGGRAPH 1980), each time as a product with weights of linear
interpolation, most of them zero. XLA computes them where they are multiplied and never stores them.
"""

import math

import jax
import jax.numpy as jnp


def resample(
    images: jax.Array,
    matrix: jax.Array,
    centre: jax.Array,
    shape: tuple[int, ...],
    reach: float,
) -> jax.Array:
    """Interpolate uint8 images [B, H, W, 3], H = W, at the positions of an affine map.

    Args:
      images: they continue outside as their mirror images.
      matrix: [B, 2, 2], from output to input positions (row, column), the output's relative to its
        middle and in pixels of the input.
      centre: [B, 2], the input position of the output's middle.
      shape: rows and columns of the result, which span the image as the map moves it.
      reach: the largest sum of the absolute values of a row of the matrix, in [1, 3): more of the
        image's outside is of use the larger it is.

    Returns:
      float32 [B, *shape, 3] in [0, 255].
    """
    size = images.shape[1]
    planes = jnp.moveaxis(images, 3, 1)
    # Along the axis that moves less: a turn of nearly 90 degrees is a small one of the transposed.
    transposed = jnp.abs(matrix[:, 0, 0]) < jnp.abs(matrix[:, 0, 1])
    planes = jnp.where(transposed[:, None, None, None], planes.swapaxes(2, 3), planes)
    matrix = jnp.where(transposed[:, None, None], matrix[:, ::-1], matrix)
    centre = jnp.where(transposed[:, None], centre[:, ::-1], centre)

    # The input's rows and mirrored ones beyond, which the corners of a turned square come from.
    beyond = math.ceil((reach - 1.0) / 2.0 * size) + 1
    planes = jnp.pad(planes, ((0, 0), (0, 0), (beyond, beyond), (0, 0)), mode="symmetric")
    rows = jnp.arange(-beyond, size + beyond, dtype=jnp.float32)[None, :, None]
    # (row, column) = matrix @ (r, c) + centre: first with r eliminated.
    a, b, c, d, row, column = (
        values[:, None, None] for values in (*matrix.reshape(-1, 4).T, *centre.T)
    )
    at_c = _span(shape[1], size)[None, None, :]
    at_r = _span(shape[0], size)[None, :, None]
    columns = c / a * (rows - row) + (d - c / a * b) * at_c + column
    along_rows = _weights(mirrored(columns, size), size)
    planes = jnp.einsum("bkyx,bycx->bkyc", planes.astype(jnp.float32), along_rows)
    along_columns = _weights(a * at_r + b * at_c + row + beyond, rows.shape[1])
    return jnp.einsum("bkyc,brcy->brck", planes, along_columns)


def blur(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Convolve [B, H, W, C] with weights [B, odd] along both axes, edges mirrored."""
    radius = weights.shape[1] // 2

    def band(size: int) -> jax.Array:
        """The convolution of a line as a matrix [B, size, size]."""
        places = jnp.arange(size, dtype=x.dtype)
        taps = jnp.arange(-radius, radius + 1, dtype=x.dtype)
        sources = mirrored(places[:, None] + taps[None], size)
        hits = (sources[..., None] == places[None, None]).astype(x.dtype)
        return jnp.einsum("bt,pts->bps", weights, hits)

    x = jnp.einsum("brh,bhwk->brwk", band(x.shape[1]), x)
    return jnp.einsum("bcw,brwk->brck", band(x.shape[2]), x)


def mirrored(position: jax.Array, size: int) -> jax.Array:
    """Fold positions at the outer edges of the first and the last pixel into [0, size - 1].

    Right up to one image's length outside, which no map of `augment` leaves but in images more than
    three times as wide as high; what lies further is cut.
    """
    folded = size - jnp.abs(size - jnp.abs(position + 0.5)) - 0.5
    return jnp.clip(folded, 0.0, size - 1.0)


def _span(count: int, size: int) -> jax.Array:
    """Return `count` positions that span `size` pixels around their middle, which is 0."""
    middled = jnp.arange(count, dtype=jnp.float32) - (count - 1) / 2
    return middled if count == size else middled * (size / count)


def _weights(positions: jax.Array, size: int) -> jax.Array:
    """Linear interpolation of `size` values at positions [...], as weights [..., size]."""
    places = jnp.arange(size, dtype=jnp.float32).reshape([1] * positions.ndim + [size])
    return jnp.maximum(0.0, 1.0 - jnp.abs(positions[..., None] - places))
