"""Convolutions of stride 2 that are fast on every back end, batch norm and initialisers.

The two operations here are exact; only the way in which they are computed depends on the back end.
On a CPU, what automatic differentiation makes of `lax.conv_transpose` and of a strided
`lax.conv_general_dilated` runs as a naive loop, so both carry gradients of their own, each written
through the other operation.
"""

import math
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

KERNEL_SIZE = 4
STRIDE = 2

# From this height and width of the input up, the sub-pixel form is the faster one on a CPU.
_SUBPIXEL_MIN_SIZE = 12

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


class Initializer(Protocol):
    """A Flax initialiser: `(key, shape, dtype) -> array`."""

    def __call__(
        self, key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = ..., /
    ) -> jax.Array:
        """Return a new array of the shape and dtype."""


def normal_init(stddev: float = 0.02) -> Initializer:
    """Return the initialiser N(0, stddev^2); Radford et al. 2015, section 4, have 0.02.

    It gives the numbers of `flax.linen.initializers.normal(stddev)`.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
        # XLA compiles the counters of a flat draw ten times as fast as those of one with four axes:
        # half a second, not five, for a network.
        flat = jax.random.normal(key, (math.prod(shape),), dtype) * jnp.asarray(stddev, dtype)
        return flat.reshape(shape)

    return init


def batch_norm(
    *, train: bool, dtype: DTypeLike = jnp.float32, name: str | None = None
) -> nn.BatchNorm:
    """Return the batch norm that all networks share: momentum 0.9, epsilon 1e-5.

    Parameters and statistics are float32 whatever `dtype` the activations have. The convolution
    before it has no bias: a bias would be removed at once by the mean, and its rounding makes runs
    on different numbers of devices drift apart.
    """
    return nn.BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype, name=name
    )


def _check(x: jax.Array, kernel: jax.Array) -> None:
    if x.ndim != 4 or min(x.shape[1:3]) < 1:
        raise ValueError(f"x must be [B, H, W, C], not {list(x.shape)}")
    if kernel.ndim != 4 or kernel.shape[:2] != (KERNEL_SIZE, KERNEL_SIZE):
        raise ValueError(f"the kernel must be [4, 4, C, O], not {list(kernel.shape)}")
    if x.shape[-1] != kernel.shape[2]:
        raise ValueError(
            f"x has {x.shape[-1]} channels but the kernel, {list(kernel.shape)}, takes"
            f" {kernel.shape[2]}"
        )
    if x.dtype != kernel.dtype:
        raise ValueError(f"x is {x.dtype} but the kernel is {kernel.dtype}")


def _flip(kernel: jax.Array) -> jax.Array:
    """Turn [4, 4, C, O] into [4, 4, O, C], both window axes reversed."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


def _plain_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, (STRIDE, STRIDE), ((1, 1), (1, 1)), dimension_numbers=_DIMENSIONS
    )


def _plain_conv_transpose(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_transpose(
        x, kernel, (STRIDE, STRIDE), ((2, 2), (2, 2)), dimension_numbers=_DIMENSIONS
    )


def _subpixel_conv_transpose(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Compute the transposed convolution as one dense 2x2 convolution to the four output phases.

    In each axis out[2i] = K0 x[i-1] + K2 x[i] and out[2i+1] = K1 x[i] + K3 x[i+1]: phase r takes
    the taps r and r + 2, and starts r positions later in the padded input.
    """
    B, H, W, C = x.shape
    O = kernel.shape[3]  # noqa: E741
    taps = kernel.reshape(2, 2, 2, 2, C, O).transpose(0, 2, 4, 1, 3, 5).reshape(2, 2, C, 4 * O)
    phases = lax.conv_general_dilated(
        x, taps, (1, 1), ((1, 1), (1, 1)), dimension_numbers=_DIMENSIONS
    ).reshape(B, H + 1, W + 1, 2, 2, O)
    rows = [
        jnp.stack([phases[:, r : r + H, s : s + W, r, s] for s in range(2)], axis=3)
        for r in range(2)
    ]
    return jnp.stack(rows, axis=2).reshape(B, 2 * H, 2 * W, O)


def _kernel_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    """Return the gradient of `_plain_conv(x, K)` to K: [4, 4, C of x, C of dy]."""
    kernel = jax.ShapeDtypeStruct((KERNEL_SIZE, KERNEL_SIZE, x.shape[-1], dy.shape[-1]), x.dtype)
    (gradient,) = jax.linear_transpose(lambda k: _plain_conv(x, k), kernel)(dy)
    return gradient


@jax.custom_vjp
def strided_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve with a 4x4 kernel, stride 2, padding 1: PyTorch's `Conv2d(C, O, 4, 2, 1)`.

    PyTorch's `weight[o, c, i, j]` is `kernel[i, j, c, o]`. Works under `jit`, `vmap` and reverse
    mode (also twice); forward mode is not defined.

    Args:
      x: [B, H, W, C], any float dtype, H and W at least 2.
      kernel: [4, 4, C, O] of the same dtype.

    Returns:
      [B, H // 2, W // 2, O] of the dtype of `x`; the last row or column of an odd size counts.

    Raises:
      ValueError: if shapes or dtypes don't fit.
    """
    _check(x, kernel)
    if min(x.shape[1:3]) < 2:
        raise ValueError(f"x must be at least 2x2, not {x.shape[1]}x{x.shape[2]}")
    return _plain_conv(x, kernel)


def _strided_conv_forward(
    x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return strided_conv(x, kernel), (x, kernel)


def _strided_conv_backward(
    residuals: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    H, W = x.shape[1:3]
    # The last row of an odd size is reached by the last output alone: a zero after it makes the
    # transposed convolution long enough.
    dy_even = jnp.pad(dy, ((0, 0), (0, H % 2), (0, W % 2), (0, 0)))
    dx = strided_conv_transpose(dy_even, _flip(kernel))[:, :H, :W]
    return dx, _kernel_gradient(x, dy)


strided_conv.defvjp(_strided_conv_forward, _strided_conv_backward)


@jax.custom_vjp
def strided_conv_transpose(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve transposed with a 4x4 kernel, stride 2: PyTorch's `ConvTranspose2d(C, O, 4, 2, 1)`.

    PyTorch's `weight[c, o, i, j]` is `kernel[3 - i, 3 - j, c, o]`: the kernel is the one of
    `lax.conv_transpose` and `flax.linen.ConvTranspose` with padding 'SAME', whose window runs over
    the input spread by zeros. Works under `jit`, `vmap` and reverse mode (also twice); forward mode
    is not defined.

    Args:
      x: [B, H, W, C], any float dtype.
      kernel: [4, 4, C, O] of the same dtype.

    Returns:
      [B, 2 H, 2 W, O] of the dtype of `x`.

    Raises:
      ValueError: if shapes or dtypes don't fit.
    """
    _check(x, kernel)
    if min(x.shape[1:3]) < _SUBPIXEL_MIN_SIZE:
        return _plain_conv_transpose(x, kernel)
    return lax.platform_dependent(
        x, kernel, cpu=_subpixel_conv_transpose, default=_plain_conv_transpose
    )


def _strided_conv_transpose_forward(
    x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return strided_conv_transpose(x, kernel), (x, kernel)


def _strided_conv_transpose_backward(
    residuals: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    return strided_conv(dy, _flip(kernel)), _flip(_kernel_gradient(dy, x))


strided_conv_transpose.defvjp(_strided_conv_transpose_forward, _strided_conv_transpose_backward)


class StridedConv(nn.Module):
    """`strided_conv` as a layer: [B, H, W, C] -> [B, H // 2, W // 2, features] of `dtype`.

    Parameters are float32: `kernel` [4, 4, C, features] and, with `use_bias`, `bias` [features].
    """

    features: int
    use_bias: bool = True
    kernel_init: Initializer = normal_init()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layer to x [B, H, W, C] of any float dtype."""
        kernel = _kernel(self, x.shape[-1])
        y = strided_conv(x.astype(self.dtype), kernel)
        return _add_bias(self, y)


class StridedConvTranspose(nn.Module):
    """`strided_conv_transpose` as a layer: [B, H, W, C] -> [B, 2 H, 2 W, features] of `dtype`.

    Parameters are float32: `kernel` [4, 4, C, features] and, with `use_bias`, `bias` [features].
    """

    features: int
    use_bias: bool = True
    kernel_init: Initializer = normal_init()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layer to x [B, H, W, C] of any float dtype."""
        kernel = _kernel(self, x.shape[-1])
        y = strided_conv_transpose(x.astype(self.dtype), kernel)
        return _add_bias(self, y)


class ProjectToMap(nn.Module):
    """A transposed convolution of a 1x1 map with a kernel of size x size, as a matrix product.

    [B, C] -> [B, size, size, features] of `dtype`: PyTorch's `ConvTranspose2d(C, features, size)`
    on a 1x1 map, whose `weight[c, o, i, j]` is `kernel[c, i, j, o]`. This is how the generator of
    Radford et al. 2015 begins. Parameters are float32: `kernel` [C, size, size, features] and,
    with `use_bias`, `bias` [features].
    """

    size: int
    features: int
    use_bias: bool = True
    kernel_init: Initializer = normal_init()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layer to x [B, C] of any float dtype."""
        shape = (x.shape[-1], self.size, self.size, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
        y = jnp.tensordot(x.astype(self.dtype), kernel, axes=1)
        return _add_bias(self, y)


def _kernel(layer: StridedConv | StridedConvTranspose, channels: int) -> jax.Array:
    shape = (KERNEL_SIZE, KERNEL_SIZE, channels, layer.features)
    return layer.param("kernel", layer.kernel_init, shape, jnp.float32).astype(layer.dtype)


def _add_bias(layer: StridedConv | StridedConvTranspose | ProjectToMap, y: jax.Array) -> jax.Array:
    if not layer.use_bias:
        return y
    bias = layer.param("bias", nn.initializers.zeros_init(), (layer.features,), jnp.float32)
    return y + bias.astype(layer.dtype).reshape(1, 1, 1, -1)
