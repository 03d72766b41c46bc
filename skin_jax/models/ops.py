"""Operators on arrays that are fast on every back end: convolutions, products, pooling, resizing.

They are exact; only the way in which they are computed depends on the back end. On a CPU, what
automatic differentiation makes of `lax.conv_transpose` and of a strided `lax.conv_general_dilated`
runs as a naive loop, so both have gradients of their own, each written through the other operation.
A depthwise convolution is a naive loop there in every direction: it is a sum of shifted products.

Those with a gradient of their own work under `jit`, `vmap` and reverse mode (twice too, but for
`max_pool`); forward mode is not defined.
"""

import contextlib
import contextvars
import functools
import itertools
import operator
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

Padding = tuple[tuple[int, int], tuple[int, int]]
"""Rows of zeros above and below, columns of zeros left and right."""

_Two = tuple[jax.Array, jax.Array]
_AROUND: Padding = ((1, 1), (1, 1))

# The heights and widths of the input at which a CPU computes a transposed convolution faster in the
# plain form than in the sub-pixel form. A map smaller than the kernel XLA takes for the kernel of
# the convolution, and a CPU then 20 times as long.
_PLAIN_TRANSPOSE_SIZES = range(4, 8)

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


_PLAIN = contextvars.ContextVar("plain", default=False)


@contextlib.contextmanager
def plain_forms() -> Iterator[None]:
    """Trace operators as on no platform in particular: converters do not know `platform_index`."""
    token = _PLAIN.set(True)
    try:
        yield
    finally:
        _PLAIN.reset(token)


def _by_platform(*arrays: jax.Array, cpu: Callable[..., Any], default: Callable[..., Any]) -> Any:
    if _PLAIN.get():
        return default(*arrays)
    return lax.platform_dependent(*arrays, cpu=cpu, default=default)


def _with_gradient(gradient: Callable[..., tuple[jax.Array, ...]]) -> Callable[[Any], Any]:
    """Decorate a function of arrays whose cotangents are `gradient(*arguments, dy)`."""

    def decorate(function: Callable[..., jax.Array]) -> Any:
        own = jax.custom_vjp(function)
        own.defvjp(lambda *args: (own(*args), args), lambda args, dy: gradient(*args, dy))
        return own

    return decorate


def _plain_conv(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding, groups: int = 1
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=_DIMENSIONS,
        feature_group_count=groups,
    )


def _check(x: jax.Array, kernel: jax.Array) -> None:
    if x.ndim != 4 or min(x.shape[1:3]) < 1:
        raise ValueError(f"x must be [B, H, W, C], not {list(x.shape)}")
    if kernel.ndim != 4 or kernel.shape[:2] != (4, 4):
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


def _kernel_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    """Return the gradient of `strided_conv(x, K)` to K: [4, 4, C of x, C of dy]."""
    kernel = jax.ShapeDtypeStruct((4, 4, x.shape[-1], dy.shape[-1]), x.dtype)
    (gradient,) = jax.linear_transpose(lambda k: _plain_conv(x, k, 2, _AROUND), kernel)(dy)
    return gradient


def _strided_conv_gradient(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> _Two:
    H, W = x.shape[1:3]
    # The last row of an odd size is reached by the last output alone: a zero after it makes the
    # transposed convolution long enough.
    dy_even = jnp.pad(dy, ((0, 0), (0, H % 2), (0, W % 2), (0, 0)))
    dx = strided_conv_transpose(dy_even, _flip(kernel))[:, :H, :W]
    return dx, _kernel_gradient(x, dy)


@_with_gradient(_strided_conv_gradient)
def strided_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve with a 4x4 kernel, stride 2, padding 1: PyTorch's `Conv2d(C, O, 4, 2, 1)`.

    PyTorch's `weight[o, c, i, j]` is `kernel[i, j, c, o]`.

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
    return _plain_conv(x, kernel, 2, _AROUND)


def _strided_conv_transpose_gradient(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> _Two:
    return strided_conv(dy, _flip(kernel)), _flip(_kernel_gradient(dy, x))


@_with_gradient(_strided_conv_transpose_gradient)
def strided_conv_transpose(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve transposed with a 4x4 kernel, stride 2: PyTorch's `ConvTranspose2d(C, O, 4, 2, 1)`.

    PyTorch's `weight[c, o, i, j]` is `kernel[3 - i, 3 - j, c, o]`: the kernel is the one of
    `lax.conv_transpose` and `flax.linen.ConvTranspose` with padding 'SAME', whose window runs over
    the input spread by zeros.

    Args:
      x: [B, H, W, C], any float dtype.
      kernel: [4, 4, C, O] of the same dtype.

    Returns:
      [B, 2 H, 2 W, O] of the dtype of `x`.

    Raises:
      ValueError: if shapes or dtypes don't fit.
    """
    _check(x, kernel)
    if min(x.shape[1:3]) in _PLAIN_TRANSPOSE_SIZES:
        return _plain_conv_transpose(x, kernel)
    return _by_platform(x, kernel, cpu=_subpixel_conv_transpose, default=_plain_conv_transpose)


def _plain_conv_transpose(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_transpose(x, kernel, (2, 2), ((2, 2), (2, 2)), dimension_numbers=_DIMENSIONS)


def _subpixel_conv_transpose(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Compute the transposed convolution as one dense 2x2 convolution to the four output phases.

    In each axis out[2i] = K0 x[i-1] + K2 x[i] and out[2i+1] = K1 x[i] + K3 x[i+1]: phase r takes
    the taps r and r + 2, and starts r positions later in the padded input. With the later phase
    first in each pair, the phases in turn are the output with one row and column around it.
    """
    B, H, W, C = x.shape
    O = kernel.shape[3]  # noqa: E741
    taps = kernel.reshape(2, 2, 2, 2, C, O)[:, ::-1, :, ::-1].transpose(0, 2, 4, 1, 3, 5)
    phases = _plain_conv(x, taps.reshape(2, 2, C, 4 * O), 1, _AROUND)
    pairs = phases.reshape(B, H + 1, W + 1, 2, 2, O).transpose(0, 1, 3, 2, 4, 5)
    return pairs.reshape(B, 2 * H + 2, 2 * W + 2, O)[:, 1:-1, 1:-1]


def _blur_axis(x: jax.Array, axis: int) -> jax.Array:
    first, last = (lax.slice_in_dim(x, at, at + 1, axis=axis) for at in (0, x.shape[axis] - 1))
    padded = jnp.concatenate([first, x, last], axis)  # jnp.pad would touch the axis B, too
    before, after = (
        lax.slice_in_dim(padded, start, start + x.shape[axis], axis=axis) for start in (0, 2)
    )
    return 0.5 * x + 0.25 * (before + after)


def _blur_gradient(x: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
    return (blur(dy),)  # with repeated edges its matrix is symmetric


@_with_gradient(_blur_gradient)
def blur(x: jax.Array) -> jax.Array:
    """Filter x [B, H, W, C] with [1, 2, 1] / 4 in both axes, its edges repeated."""
    # Each axis is a pass of its own on a CPU: half the time of nine taps in one.
    return _blur_axis(materialized(_blur_axis(materialized(x), 1)), 2)


def upsampled_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Double x by bilinear interpolation and convolve it with a 3x3 kernel, padding 1.

    Interpolation is to repeat each pixel and blur; convolution and blur may be exchanged; and a
    repeated map convolved is a transposed convolution, of 2.25 times fewer operations (as in Karras
    et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020). So the outermost
    two rows and columns have other edges than in the plain order.

    Args:
      x: [B, H, W, C], any float dtype.
      kernel: [3, 3, C, O] of the same dtype.

    Returns:
      [B, 2 H, 2 W, O] of the dtype of `x`.
    """
    padded = jnp.pad(kernel, ((1, 1), (1, 1), (0, 0), (0, 0)))
    rows = padded[1:] + padded[:-1]
    return blur(strided_conv_transpose(x, rows[:, 1:] + rows[:, :-1]))


def _plain_depthwise(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return _plain_conv(x, kernel, stride, ((0, 0), (0, 0)), x.shape[-1])


def _windows(x: jax.Array, size: tuple[int, ...], stride: int) -> list[list[jax.Array]]:
    """For each tap of a kernel of `size` the pixels of x [..., H, W, C] that it meets."""
    reach = [(n - k) // stride * stride + 1 for n, k in zip(x.shape[-3:-1], size, strict=True)]
    return [
        [x[..., i : i + reach[0] : stride, j : j + reach[1] : stride, :] for j in range(size[1])]
        for i in range(size[0])
    ]


def _shifted_depthwise(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    products = [
        window * kernel[i : i + 1, j : j + 1]
        for i, row in enumerate(_windows(x, kernel.shape[:2], stride))
        for j, window in enumerate(row)
    ]
    return functools.reduce(operator.add, products)


def _shifted_input_gradient(
    x: jax.Array, kernel: jax.Array, dy: jax.Array, stride: int
) -> jax.Array:
    """Return the gradient of `_shifted_depthwise` to x, phase by phase of the stride.

    Row stride m + r of x met tap r + stride a for the output m - a, so that each phase r is a
    convolution of dy by every stride-th tap, reversed, with stride 1.
    """
    B, H, W, C = x.shape
    most = -(-len(kernel) // stride)  # taps of the phase that has most
    padded = jnp.pad(dy, ((0, 0), (most - 1, most - 1), (most - 1, most - 1), (0, 0)))
    rows = []
    for r in range(stride):
        phases = []
        for s in range(stride):
            taps = kernel[r::stride, s::stride][::-1, ::-1]
            h, w = taps.shape[:2]
            phases.append(_shifted_depthwise(padded[:, most - h :, most - w :], taps, 1))
        rows.append(jnp.stack(phases, axis=3))
    together = jnp.stack(rows, axis=2)
    h, w = stride * together.shape[1], stride * together.shape[3]
    # Rows that no window reached are 0.
    return lax.pad(
        together.reshape(B, h, w, C),
        jnp.zeros((), dy.dtype),
        ((0, 0, 0), (0, H - h, 0), (0, W - w, 0), (0, 0, 0)),
    )


def _shifted_kernel_gradient(
    x: jax.Array, kernel: jax.Array, dy: jax.Array, stride: int
) -> jax.Array:
    """Return the gradient of `_shifted_depthwise` to the kernel.

    Example by example, whose activations stay in the cache for all taps: 2 to 4 times faster than
    a sum over the batch for each tap.
    """

    def add(total: jax.Array, example: _Two) -> tuple[jax.Array, None]:
        pixels, d = example
        windows = _windows(pixels, kernel.shape[:2], stride)
        sums = [[jnp.sum(w * d, axis=(0, 1), dtype=total.dtype) for w in row] for row in windows]
        return total + jnp.stack([jnp.stack(row) for row in sums])[:, :, None], None

    total = jnp.zeros(kernel.shape, jnp.promote_types(kernel.dtype, jnp.float32))
    return lax.scan(add, total, (x, dy))[0].astype(kernel.dtype)


def depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """Convolve every channel with a kernel of its own: PyTorch's `Conv2d(C, C, k, groups=C)`.

    PyTorch's `weight[c, 0, i, j]` is `kernel[i, j, 0, c]`.

    Args:
      x: [B, H, W, C], any float dtype.
      kernel: [k, k, 1, C] of the same dtype.
      stride: 1 to k, of both axes.
      padding: zeros around x; with it x must be at least k x k.

    Returns:
      [B, (H + padding - k) // stride + 1, ..., C] of the dtype of `x`.
    """

    def gradient(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> _Two:
        def shifted(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> _Two:
            return (
                _shifted_input_gradient(x, kernel, dy, stride),
                _shifted_kernel_gradient(x, kernel, dy, stride),
            )

        def plain(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> _Two:
            return jax.vjp(lambda x, k: _plain_depthwise(x, k, stride), x, kernel)[1](dy)

        return _by_platform(x, kernel, dy, cpu=shifted, default=plain)

    @_with_gradient(gradient)
    def unpadded(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return _by_platform(
            x,
            kernel,
            cpu=functools.partial(_shifted_depthwise, stride=stride),
            default=functools.partial(_plain_depthwise, stride=stride),
        )

    # Padded here, and not by the convolution, so that forward and backward share the padded array.
    return unpadded(jnp.pad(x, ((0, 0), *padding, (0, 0))), kernel)


def materialized(x: jax.Array) -> jax.Array:
    """Return x, which on a CPU is then read, and not computed again, by whatever takes it.

    XLA would compute batch norm and residual sums of up to three blocks once more, column by
    column, for the gradient of a kernel. The barrier lasts only with `devices.compiler_options`.
    """
    return _by_platform(x, cpu=lax.optimization_barrier, default=lambda x: x)


def _product_gradient(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> _Two:
    # On a CPU XLA would compute dy a second time, column by column, for the kernel's gradient. That
    # product is faster with its smaller side on the left; materialised it stays so, and the
    # optimiser does not read it column by column. Automatic differentiation would give it
    # transposed, and do that to 13 million numbers of paper A's first layer.
    dy = materialized(dy)
    rows = tuple(range(x.ndim - 1))
    if x.shape[-1] <= dy.shape[-1]:
        gradient = jnp.tensordot(x, dy, axes=(rows, rows))
    else:
        transposed = materialized(jnp.tensordot(dy, x, axes=(rows, rows)))
        gradient = materialized(transposed.T)
    return jnp.tensordot(dy, kernel.T, axes=1), gradient


@_with_gradient(_product_gradient)
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiply x [..., C] by kernel [C, O] of the same float dtype: [..., O]."""
    return jnp.tensordot(x, kernel, axes=1)


def conv(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """Convolve: PyTorch's `Conv2d(C, O, k, stride)` with a padding for each side.

    PyTorch's `weight[o, c, i, j]` is `kernel[i, j, c, o]`.

    Args:
      x: [B, H, W, C], any float dtype.
      kernel: [k, k, C, O] of the same dtype.
      stride: of both axes.
      padding: zeros around x; with it x must be at least k x k.

    Returns:
      [B, (H + padding - k) // stride + 1, ..., O] of the dtype of `x`.
    """
    if (len(kernel), stride, padding) == (4, 2, _AROUND):
        return strided_conv(x, kernel)
    x = materialized(x)
    if kernel.shape[:2] == (1, 1) and padding == ((0, 0), (0, 0)) and not _PLAIN.get():
        # A matrix product is faster on a CPU, and the same elsewhere.
        return product(x[:, ::stride, ::stride], kernel[0, 0])

    def gathered(x: jax.Array, kernel: jax.Array) -> jax.Array:
        windows = _windows(jnp.pad(x, ((0, 0), *padding, (0, 0))), kernel.shape[:2], stride)
        taps = jnp.concatenate([pixels for row in windows for pixels in row], axis=-1)
        return jnp.tensordot(taps, kernel.reshape(-1, kernel.shape[-1]), axes=1)

    plain = functools.partial(_plain_conv, stride=stride, padding=padding)
    smallest = min(*x.shape[1:3], *jax.eval_shape(plain, x, kernel).shape[1:3])
    if smallest >= len(kernel):
        return plain(x, kernel)
    # XLA swaps the operands of a convolution of a map that is smaller than the kernel, and a CPU
    # then takes a naive loop: seconds for the last layers of a ResNet-50 at 64x64.
    return _by_platform(x, kernel, cpu=gathered, default=plain)


def padding_of(
    x: jax.Array, kernel_size: int, stride: int, padding: int | Literal["SAME"]
) -> Padding:
    """Return the zeros around x [B, H, W, C]: as many on each side, or TensorFlow's "SAME"."""
    if padding == "SAME":
        vertical, horizontal = lax.padtype_to_pads(
            x.shape[1:3], (kernel_size, kernel_size), (stride, stride), "SAME"
        )
        return vertical, horizontal
    return (padding, padding), (padding, padding)


def max_pool(x: jax.Array) -> jax.Array:
    """Return the maximum over 3x3 pixels, stride 2, padding 1: PyTorch's `MaxPool2d(3, 2, 1)`.

    The first of equal maxima, row by row, has their gradient, as in PyTorch. A number that says
    where in its window each maximum was leads it there: on a CPU three times as fast as the
    gradient of a maximum of nine arrays.

    Args:
      x: [B, H, W, C], any float dtype.

    Returns:
      [B, ceil(H / 2), ceil(W / 2), C] of the same dtype.
    """
    return _max_pool(materialized(x))


@jax.custom_vjp
def _max_pool(x: jax.Array) -> jax.Array:
    return functools.reduce(jnp.maximum, _pooled(x))


def _pooled(x: jax.Array) -> list[jax.Array]:
    """The nine pixels of each window, [B, ceil(H / 2), ceil(W / 2), C] each, row by row."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    return [pixel for row in _windows(padded, (3, 3), 2) for pixel in row]


def _max_pool_forward(x: jax.Array) -> tuple[jax.Array, _Two]:
    y = _max_pool(x)
    place = jnp.full(y.shape, 8, jnp.int8)
    for k, pixel in reversed(list(enumerate(_pooled(x)[:8]))):
        place = jnp.where(pixel == y, jnp.int8(k), place)
    return y, (place, x)


def _max_pool_backward(residuals: _Two, dy: jax.Array) -> tuple[jax.Array]:
    # Row h is in the middle of window h // 2 where it is even, the last of that window and the
    # first of the next one where it is odd; columns likewise.
    place, x = residuals
    B, H, W, C = x.shape

    def windows_of(values: jax.Array, down: int, right: int) -> jax.Array:
        """For each pixel, the value of its window, or of the one below or to the right of that."""
        h, w = values.shape[1:3]
        pairs = jnp.broadcast_to(values[:, :, None, :, None], (B, h, 2, w, 2, C))
        spread = pairs.reshape(B, 2 * h, 2 * w, C)
        padded = jnp.pad(spread, ((0, 0), (0, down), (0, right), (0, 0)))
        return padded[:, down : down + H, right : right + W]

    def places(size: int, next_one: int) -> np.ndarray:
        """Each row's number in the window, -9 for none."""
        odd = np.arange(size) % 2 == 1
        return np.where(odd, 0, -9) if next_one else np.where(odd, 2, 1)

    dx = jnp.zeros_like(x)
    for down, right in itertools.product((0, 1), repeat=2):
        own = 3 * places(H, down)[:, None] + places(W, right)
        own = np.where(own < 0, -1, own).astype(np.int8)[None, :, :, None]
        dx += jnp.where(windows_of(place, down, right) == own, windows_of(dy, down, right), 0)
    return (dx,)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def normalize(
    images: jax.Array,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    dtype: DTypeLike,
) -> jax.Array:
    """Return (images in [0, 1] - mean) / std in `dtype`, for images [B, H, W, 3] in [-1, 1].

    `mean` and `std` are those of a channel, red first, that a pretrained network was trained with.
    """
    scale = 0.5 / np.asarray(std, np.float32)
    offset = (0.5 - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    x = images.astype(jnp.float32) * scale.reshape(1, 1, 1, 3) + offset.reshape(1, 1, 1, 3)
    return x.astype(dtype)
