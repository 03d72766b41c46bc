"""Flax modules of the networks: convolutions, batch norm, initialisers, a classifier's head."""

import math
from typing import Any, Literal, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from skin_jax.models import ops


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


def he_init(fan: Literal["fan_in", "fan_out"]) -> Initializer:
    """Return the initialiser N(0, 2 / fan) of a convolution's kernel [k, k, C, O].

    He et al., "Delving Deep into Rectifiers", ICCV 2015, equations 10 (k k C) and 14 (k k O).
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
        inputs, outputs = shape[-2:]
        size = math.prod(shape[:-2]) * (inputs if fan == "fan_in" else outputs)
        return normal_init(math.sqrt(2.0 / size))(key, shape, dtype)

    return init


class Conv(nn.Module):
    """A convolution: [B, H, W, C] -> [B, h, w, features] of `dtype`.

    `padding` is that of each side, PyTorch's, or "SAME": TensorFlow's, ceil(H / stride) rows,
    the odd row and column of padding come last. Parameters are float32: `kernel`
    [kernel_size, kernel_size, C, features] and, with `use_bias`, `bias` [features]; PyTorch's
    `weight[o, c, i, j]` is `kernel[i, j, c, o]`.
    """

    features: int
    kernel_size: int
    stride: int = 1
    padding: int | Literal["SAME"] = 0
    kernel_init: Initializer = he_init("fan_out")
    use_bias: bool = False
    spectral_norm: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layer to x [B, H, W, C] of any float dtype."""
        kernel = _kernel(self, (self.kernel_size, self.kernel_size, x.shape[-1], self.features))
        padding = ops.padding_of(x, self.kernel_size, self.stride, self.padding)
        return _add_bias(self, ops.conv(x.astype(self.dtype), kernel, self.stride, padding))


class StridedConvTranspose(nn.Module):
    """`ops.strided_conv_transpose` as a layer: [B, H, W, C] -> [B, 2 H, 2 W, features] of `dtype`.

    Parameters are float32: `kernel` [4, 4, C, features] and, with `use_bias`, `bias` [features].
    """

    features: int
    use_bias: bool = True
    kernel_init: Initializer = normal_init()
    spectral_norm: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layer to x [B, H, W, C] of any float dtype."""
        kernel = _kernel(self, (ops.KERNEL_SIZE, ops.KERNEL_SIZE, x.shape[-1], self.features))
        return _add_bias(self, ops.strided_conv_transpose(x.astype(self.dtype), kernel))


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
    spectral_norm: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layer to x [B, C] of any float dtype."""
        shape = (x.shape[-1], self.size, self.size, self.features)
        kernel = _kernel(self, shape)
        y = ops.product(x.astype(self.dtype), kernel.reshape(x.shape[-1], -1))
        return _add_bias(self, y.reshape(-1, *shape[1:]))


class DepthwiseConv(nn.Module):
    """`ops.depthwise_conv` as a layer with `padding` as in `Conv`: [B, H, W, C] -> [B, h, w, C].

    The one parameter is float32: `kernel` [kernel_size, kernel_size, 1, C], drawn from
    N(0, 2 / kernel_size^2).
    """

    kernel_size: int
    stride: int = 1
    padding: int | Literal["SAME"] = "SAME"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layer to x [B, H, W, C] of any float dtype."""
        shape = (self.kernel_size, self.kernel_size, 1, x.shape[-1])
        kernel = self.param("kernel", he_init("fan_in"), shape, jnp.float32).astype(self.dtype)
        padding = ops.padding_of(x, self.kernel_size, self.stride, self.padding)
        return ops.depthwise_conv(x.astype(self.dtype), kernel, self.stride, padding)


def _kernel(layer: Conv | StridedConvTranspose | ProjectToMap, shape: tuple[int, ...]) -> jax.Array:
    kernel = layer.param("kernel", layer.kernel_init, shape, jnp.float32)
    if layer.spectral_norm:
        kernel = kernel / _spectral_norm(layer, kernel)
    return kernel.astype(layer.dtype)


def _spectral_norm(layer: nn.Module, kernel: jax.Array) -> jax.Array:
    """Return the largest singular value of a kernel [..., O], read as a matrix of O columns.

    By one step of the power iteration, which goes on from the variable `u` [O] of `batch_stats`;
    where that is mutable it keeps the result, as batch norm does. Miyato et al., "Spectral
    Normalization for Generative Adversarial Networks", ICLR 2018, algorithm 1.
    """
    matrix = kernel.reshape(-1, kernel.shape[-1])

    def unit(vector: jax.Array) -> jax.Array:
        return vector * lax.rsqrt(jnp.sum(jnp.square(vector)) + 1e-12)

    # Any direction will do but one at a right angle to the singular vector: the same for all.
    u = layer.variable(
        "batch_stats", "u", lambda: unit(jax.random.normal(jax.random.key(0), matrix.shape[1:]))
    )
    fixed = lax.stop_gradient(matrix)
    left = unit(fixed @ u.value)
    right = unit(left @ fixed)
    if layer.is_mutable_collection("batch_stats") and not layer.is_initializing():
        u.value = right
    return left @ (matrix @ right)


def _add_bias(layer: Conv | StridedConvTranspose | ProjectToMap, y: jax.Array) -> jax.Array:
    if not layer.use_bias:
        return y
    bias = layer.param("bias", nn.initializers.zeros_init(), (layer.features,), jnp.float32)
    return y + bias.astype(layer.dtype).reshape(1, 1, 1, -1)


class BatchNorm(nn.Module):
    """Batch norm over all axes but the last, with the variables and values of Flax's.

    It is written as a product and a sum with one number for each channel, so that x alone is kept
    for the gradient: Flax's keeps x - mean beside it, a tenth of a CPU's step of
    EfficientNet-Lite0. Parameters `scale` and `bias` and the statistics `mean` and `var` are
    float32 whatever `dtype` the activations have.

    `momentum` is the share of the running statistics that a step leaves: 1 less PyTorch's. The
    running variance is that of the batch itself, where PyTorch takes n / (n - 1) of it for n
    values of a channel.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: Initializer = nn.initializers.ones
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Return an array like x, [..., C] of any float dtype, in `dtype`.

        With `train` by mean and variance of the batch, which update `batch_stats`.
        """
        C = x.shape[-1]
        scale = self.param("scale", self.scale_init, (C,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (C,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (C,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (C,), jnp.float32)
        x = x.astype(jnp.float32)
        if train:
            axes = tuple(range(x.ndim - 1))
            mean = jnp.mean(x, axes)
            var = jnp.maximum(jnp.mean(jnp.square(x), axes) - jnp.square(mean), 0.0)
            if not self.is_initializing():
                for running, now in ((running_mean, mean), (running_var, var)):
                    running.value = self.momentum * running.value + (1.0 - self.momentum) * now
        else:
            mean, var = running_mean.value, running_var.value
        factor = scale * lax.rsqrt(var + self.epsilon)
        shape = (1,) * (x.ndim - 1) + (C,)
        y = x * factor.reshape(shape) + (bias - mean * factor).reshape(shape)
        return y.astype(self.dtype)


def block_name(stage: int, index: int) -> str:
    """The name of a block's submodule, both counted from 0."""
    return f"stage{stage}_block{index}"


class ClassifierOutput(NamedTuple):
    """The output of a classifier for a batch.

    logits: [B, num_classes] float32.
    features: [B, h, w, C] of the network's dtype: the last activations before the global pooling.
    pooled: [B, C] float32: their mean over h and w, before dropout.
    """

    logits: jax.Array
    features: jax.Array
    pooled: jax.Array


class ClassifierHead(nn.Module):
    """Global average pooling, dropout and one fully connected layer, all in float32.

    The parameters are `logits/kernel` [C, num_classes], drawn from N(0, 0.01^2), and `logits/bias`.
    """

    num_classes: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> ClassifierOutput:
        """Return the output for activations x [B, h, w, C]; `train` with dropout needs that rng."""
        if not self.is_initializing():  # it is no variable of the network
            # Adds `perturbations/head/features` where a caller gives it: for Grad-CAM.
            x = self.perturb("features", x)
        pooled = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        dropped = nn.Dropout(self.dropout, deterministic=not train)(pooled)
        logits = nn.Dense(
            self.num_classes, kernel_init=normal_init(0.01), dtype=jnp.float32, name="logits"
        )(dropped)
        return ClassifierOutput(logits, x, pooled)
