"""Flax modules of the networks: convolutions, batch norm, initialisers, a classifier's head."""

import math
from dataclasses import KW_ONLY
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


class _Kernel(nn.Module):
    """Layer with float32 parameters `kernel` and, with `use_bias`, `bias` [features].

    With `spectral_norm` the kernel is divided by its largest singular value.
    """

    features: int
    _: KW_ONLY
    kernel_init: Initializer = normal_init()
    use_bias: bool = False
    spectral_norm: bool = False
    dtype: Any = jnp.float32

    def kernel(self, *shape: int) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        return (kernel / self._norm(kernel) if self.spectral_norm else kernel).astype(self.dtype)

    def biased(self, y: jax.Array) -> jax.Array:
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
        return y + bias.astype(self.dtype).reshape(1, 1, 1, -1)

    def _norm(self, kernel: jax.Array) -> jax.Array:
        """Return the largest singular value of a kernel [..., O], read as a matrix of O columns.

        It takes one step of the power iteration from the variable `u` [O] of `batch_stats`, which
        is updated wherever that collection is mutable. Miyato et al., "Spectral Normalization
        for Generative Adversarial Networks", ICLR 2018, algorithm 1.
        """
        matrix = kernel.reshape(-1, kernel.shape[-1])

        def unit(vector: jax.Array) -> jax.Array:
            return vector * lax.rsqrt(jnp.sum(jnp.square(vector)) + 1e-12)

        # Any direction will do but one at a right angle to the singular vector: the same for all.
        u = self.variable(
            "batch_stats", "u", lambda: unit(jax.random.normal(jax.random.key(0), matrix.shape[1:]))
        )
        fixed = lax.stop_gradient(matrix)
        left = unit(fixed @ u.value)
        right = unit(left @ fixed)
        if self.is_mutable_collection("batch_stats") and not self.is_initializing():
            u.value = right
        return left @ (matrix @ right)


class Conv(_Kernel):
    """A convolution: [B, H, W, C] -> [B, h, w, features] of `dtype`.

    `padding` is that of each side, PyTorch's, or "SAME": TensorFlow's, ceil(H / stride) rows,
    the odd row and column of padding come last. `kernel` is [kernel_size, kernel_size, C,
    features]; PyTorch's `weight[o, c, i, j]` is `kernel[i, j, c, o]`.
    """

    kernel_size: int
    stride: int = 1
    padding: int | Literal["SAME"] = 0
    _: KW_ONLY
    kernel_init: Initializer = he_init("fan_out")

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layer to x [B, H, W, C] of any float dtype."""
        kernel = self.kernel(self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        padding = ops.padding_of(x, self.kernel_size, self.stride, self.padding)
        return self.biased(ops.conv(x.astype(self.dtype), kernel, self.stride, padding))


class StridedConvTranspose(_Kernel):
    """`ops.strided_conv_transpose` as a layer: [B, H, W, C] -> [B, 2 H, 2 W, features] of `dtype`.

    `kernel` is [4, 4, C, features].
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layer to x [B, H, W, C] of any float dtype."""
        kernel = self.kernel(4, 4, x.shape[-1], self.features)
        return self.biased(ops.strided_conv_transpose(x.astype(self.dtype), kernel))


class UpsampledConv(_Kernel):
    """`ops.upsampled_conv` as a layer: [B, H, W, C] -> [B, 2 H, 2 W, features] of `dtype`.

    `kernel` is [3, 3, C, features].
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layer to x [B, H, W, C] of any float dtype."""
        kernel = self.kernel(3, 3, x.shape[-1], self.features)
        return self.biased(ops.upsampled_conv(x.astype(self.dtype), kernel))


class ProjectToMap(_Kernel):
    """A transposed convolution of a 1x1 map with a kernel of size x size, as a matrix product.

    [B, C] -> [B, size, size, features] of `dtype`: PyTorch's `ConvTranspose2d(C, features, size)`
    on a 1x1 map, whose `weight[c, o, i, j]` is `kernel[c, i, j, o]`. This is how the generator of
    Radford et al. 2015 begins. `kernel` is [C, size, size, features].
    """

    size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layer to x [B, C] of any float dtype."""
        shape = (self.size, self.size, self.features)
        kernel = self.kernel(x.shape[-1], *shape).reshape(x.shape[-1], -1)
        return self.biased(ops.product(x.astype(self.dtype), kernel).reshape(-1, *shape))


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


class BatchNorm(nn.Module):
    """Batch norm over all axes but the last, with the variables and values of Flax's.

    It is written as a product and a sum with one number for each channel, which is faster on a CPU:
    with Flax's form, (x - mean) scale + bias, a training step takes 8% (ResNet-50) to 15%
    (EfficientNet-Lite0) more processor time. Parameters `scale` and `bias` and the statistics
    `mean` and `var` are float32 whatever `dtype` the activations have.

    `momentum` is the share of the running statistics that a step leaves: 1 less PyTorch's. The
    running variance is that of the batch itself, where PyTorch takes n / (n - 1) of it for n
    values of a channel.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: Initializer = nn.initializers.ones
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool,
        gain: jax.Array | None = None,
        shift: jax.Array | None = None,
    ) -> jax.Array:
        """Return an array like x, [..., C] of any float dtype, in `dtype`.

        With `train` by mean and variance of the batch, which update `batch_stats`. With `gain` and
        `shift`, which broadcast to x, the result y becomes y (1 + gain) + shift. That is again one
        product and one sum: a quarter of the time of two, gradients included, on a CPU.
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
        factor, offset = factor.reshape(shape), (bias - mean * factor).reshape(shape)
        if gain is not None and shift is not None:
            factor, offset = factor * (1.0 + gain), offset * (1.0 + gain) + shift
        return (x * factor + offset).astype(self.dtype)


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
