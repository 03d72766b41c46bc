"""Float32 gradients of the forms that are fast, against float64 ones of the plain forms."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from skin_jax.models import layers, ops

pytestmark = pytest.mark.as_compiled

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
SAME = ((1, 1), (1, 1))


def plain_conv(x, kernel, stride=1, padding=((0, 0), (0, 0)), groups=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=DIMENSIONS,
        feature_group_count=groups,
    )


def pointwise(stride):
    def apply(x, kernel):
        layer = layers.Conv(kernel.shape[-1], 1, stride, dtype=x.dtype)
        return layer.apply({"params": {"kernel": kernel}}, x)

    return apply


# Name -> the fast form, the plain form, the kernel's height and width, whether it is depthwise.
FORMS = {
    "conv": (
        ops.strided_conv,
        lambda x, k: plain_conv(x, k, 2, SAME),
        4,
        False,
    ),
    "conv_transpose": (
        ops.strided_conv_transpose,
        lambda x, k: lax.conv_transpose(x, k, (2, 2), "SAME", dimension_numbers=DIMENSIONS),
        4,
        False,
    ),
    "gathered": (
        lambda x, k: layers.Conv(k.shape[-1], 5, 1, 2).apply({"params": {"kernel": k}}, x),
        lambda x, k: plain_conv(x, k, 1, ((2, 2), (2, 2))),
        5,
        False,
    ),
    "pointwise": (pointwise(1), plain_conv, 1, False),
    "strided_pointwise": (pointwise(2), lambda x, k: plain_conv(x, k, 2), 1, False),
    "depthwise": (
        lambda x, k: ops.depthwise_conv(x, k, 1, SAME),
        lambda x, k: plain_conv(x, k, 1, SAME, x.shape[-1]),
        3,
        True,
    ),
    "strided_depthwise": (
        lambda x, k: ops.depthwise_conv(x, k, 2, SAME),
        lambda x, k: plain_conv(x, k, 2, SAME, x.shape[-1]),
        3,
        True,
    ),
}

# B, H, W, C, O: one example and several, one and three channels, odd sizes, maps smaller than the
# kernel, and sizes on all sides of those that decide on a form.
SHAPES = [
    (1, 7, 9, 1, 3),
    (1, 13, 15, 3, 1),
    (2, 8, 6, 3, 5),
    (3, 27, 25, 1, 2),
    (2, 2, 3, 4, 5),
    (1, 3, 2, 5, 4),
]


def relative_error(ours, exact):
    return np.max(np.abs(np.asarray(ours, np.float64) - exact)) / np.max(np.abs(exact))


def values_and_gradients(f, *arguments):
    y, pull = jax.vjp(f, *arguments)
    return (y, *pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", FORMS)
def test_convolutions(name, shape):
    fast, plain, size, depthwise = FORMS[name]
    B, H, W, C, O = shape  # noqa: E741
    rng = np.random.default_rng(0)
    kernel_shape = (size, size, 1, C) if depthwise else (size, size, C, O)
    arrays = rng.normal(size=(B, H, W, C)), rng.normal(size=kernel_shape)
    # The same numbers for both: those that float32 has.
    arrays = [a.astype(np.float32) for a in arrays]
    ours = jax.jit(lambda x, k: values_and_gradients(fast, x, k))(*arrays)
    with jax.enable_x64(True):
        exact = jax.jit(lambda x, k: values_and_gradients(plain, x, k))(
            *(a.astype(np.float64) for a in arrays)
        )
        for a, b in zip(ours, exact, strict=True):
            assert a.dtype == jnp.float32
            assert relative_error(a, np.asarray(b)) < 1e-5


@pytest.mark.parametrize("features", [1, 3])  # fewer outputs than inputs, and more
def test_project_to_map(features):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(3, 7)).astype(np.float32)
    kernel = rng.normal(size=(7, 2, 2, features)).astype(np.float32)
    layer = layers.ProjectToMap(features, 2)
    ours = jax.jit(
        lambda z, k: values_and_gradients(
            lambda z, k: layer.apply({"params": {"kernel": k}}, z), z, k
        )
    )(z, kernel)
    with jax.enable_x64(True):
        exact = values_and_gradients(
            lambda z, k: jnp.einsum("bc,cijo->bijo", z, k),
            z.astype(np.float64),
            kernel.astype(np.float64),
        )
        for a, b in zip(ours, exact, strict=True):
            assert relative_error(a, np.asarray(b)) < 1e-5


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_max_pool(shape):
    # No two are equal: where they are, the gradient has no one value.
    x = np.random.default_rng(0).permutation(np.prod(shape[:4])).reshape(shape[:4])
    x = (x / x.size - 0.5).astype(np.float32)
    ours = jax.jit(lambda x: values_and_gradients(ops.max_pool, x))(x)
    with jax.enable_x64(True):
        exact = jax.jit(
            lambda x: values_and_gradients(
                lambda x: nn.max_pool(x, (3, 3), (2, 2), SAME), x.astype(jnp.float64)
            )
        )(x)
        for a, b in zip(ours, exact, strict=True):
            assert relative_error(a, np.asarray(b)) < 1e-5


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_norm(shape):
    x = np.random.default_rng(0).normal(0.5, 2.0, shape[:4]).astype(np.float32)
    C = shape[3]
    rng = np.random.default_rng(1)
    params = {name: rng.uniform(0.5, 1.5, C).astype(np.float32) for name in ("scale", "bias")}
    stats = {"mean": np.zeros(C, np.float32), "var": np.ones(C, np.float32)}

    def ours(x, params):
        variables = {"params": params, "batch_stats": stats}
        return layers.BatchNorm().apply(variables, x, train=True, mutable=["batch_stats"])[0]

    def plain(x, params):
        axes = (0, 1, 2)
        centred = x - jnp.mean(x, axes, keepdims=True)
        y = centred / jnp.sqrt(jnp.mean(centred**2, axes, keepdims=True) + 1e-5)
        row = (1, 1, 1, C)
        return y * params["scale"].reshape(row) + params["bias"].reshape(row)

    found = jax.jit(lambda x, p: values_and_gradients(ours, x, p))(x, params)
    with jax.enable_x64(True):
        exact = jax.jit(lambda x, p: values_and_gradients(plain, x, p))(
            x.astype(np.float64), jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
        )
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
            assert relative_error(a, np.asarray(b)) < 1e-5
