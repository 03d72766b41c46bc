import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skin_jax.models import layers

# Batch 1, one and three channels, odd sizes, and both sides of the sub-pixel threshold of 12.
SHAPES = [
    (1, 2, 2, 3, 4),
    (1, 4, 4, 3, 5),
    (2, 7, 9, 1, 2),
    (2, 3, 2, 2, 1),
    (1, 12, 12, 4, 3),
    (2, 16, 13, 3, 1),
    (3, 24, 26, 2, 3),
    (2, 27, 25, 3, 2),
]


def plain_conv(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def plain_conv_transpose(x, kernel):
    return jax.lax.conv_transpose(x, kernel, (2, 2), "SAME")


PAIRS = {
    "conv": (layers.strided_conv, plain_conv),
    "conv_transpose": (layers.strided_conv_transpose, plain_conv_transpose),
}


def arrays(shape, dtype):
    B, H, W, C, O = shape  # noqa: E741
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(B, H, W, C)), dtype)
    return x, jnp.asarray(rng.normal(size=(4, 4, C, O)), dtype)


def relative_error(ours, plain):
    assert ours.shape == plain.shape
    assert ours.dtype == plain.dtype
    return float(np.max(np.abs(ours - plain)) / np.max(np.abs(plain)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", PAIRS)
def test_values_and_gradients_equal_the_plain_forms_in_float64(name, shape):
    fast, plain = PAIRS[name]

    @jax.jit
    def both(x, kernel):
        ours, pull_ours = jax.vjp(fast, x, kernel)
        theirs, pull_theirs = jax.vjp(plain, x, kernel)
        return (ours, *pull_ours(jnp.sin(ours))), (theirs, *pull_theirs(jnp.sin(theirs)))

    with jax.enable_x64(True):
        for a, b in zip(*both(*arrays(shape, jnp.float64)), strict=True):
            assert relative_error(np.asarray(a), np.asarray(b)) < 1e-10


@pytest.mark.parametrize("name", PAIRS)
def test_float32_gradients_equal_float64_ones(name):
    fast, plain = PAIRS[name]

    def gradients(f, dtype):
        x, kernel = arrays((2, 16, 16, 8, 8), dtype)
        return jax.jit(jax.grad(lambda x, k: jnp.sum(f(x, k) ** 2), argnums=(0, 1)))(x, kernel)

    ours = gradients(fast, jnp.float32)
    with jax.enable_x64(True):
        plain64 = gradients(plain, jnp.float64)
    for a, b in zip(ours, plain64, strict=True):
        assert relative_error(np.asarray(a, np.float64), np.asarray(b)) < 1e-5


def test_the_form_for_other_back_ends_equals_the_one_for_cpus():
    with jax.enable_x64(True):
        x, kernel = arrays((2, 13, 12, 3, 4), jnp.float64)
        assert (
            relative_error(
                layers._subpixel_conv_transpose(x, kernel), layers._plain_conv_transpose(x, kernel)
            )
            < 1e-10
        )


@pytest.mark.parametrize("size", [6, 12])
@pytest.mark.parametrize("name", PAIRS)
def test_vmap_over_kernels_equals_a_loop(name, size):
    fast, _ = PAIRS[name]
    x, kernel = arrays((2, size, size, 3, 4), jnp.float32)
    xs, kernels = jnp.stack([x, 2.0 * x]), jnp.stack([kernel, kernel[::-1]])

    def gradients(x, k):
        return jax.grad(lambda x, k: jnp.sum(jnp.sin(fast(x, k))), argnums=(0, 1))(x, k)

    together = jax.jit(jax.vmap(gradients))(xs, kernels)
    alone = jax.jit(gradients)
    for i in range(2):
        for a, b in zip(together, alone(xs[i], kernels[i]), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [6, 12])
@pytest.mark.parametrize("name", PAIRS)
def test_second_derivatives_equal_the_plain_ones(name, size):
    fast, plain = PAIRS[name]

    def penalty(f):
        def gradient_norm(x, k):
            return jnp.sum(jax.grad(lambda x: jnp.sum(f(x, k) ** 3))(x) ** 2)

        return jax.jit(jax.grad(gradient_norm, argnums=(0, 1)))

    with jax.enable_x64(True):
        x, kernel = arrays((1, size, size, 2, 3), jnp.float64)
        for a, b in zip(penalty(fast)(x, kernel), penalty(plain)(x, kernel), strict=True):
            assert relative_error(np.asarray(a), np.asarray(b)) < 1e-10


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", PAIRS)
def test_the_dtype_is_kept(name, dtype):
    fast, _ = PAIRS[name]
    x, kernel = arrays((1, 12, 12, 3, 4), dtype)
    y, pull = jax.vjp(fast, x, kernel)
    assert {a.dtype for a in (y, *pull(y))} == {jnp.dtype(dtype)}


def test_bfloat16_is_near_float32():
    x, kernel = arrays((2, 12, 12, 8, 8), jnp.float32)
    for fast, _ in PAIRS.values():
        low = fast(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)).astype(jnp.float32)
        assert relative_error(low, fast(x, kernel)) < 0.02


def test_bad_shapes_and_dtypes_are_named():
    x, kernel = arrays((1, 4, 4, 3, 5), jnp.float32)
    for fast, _ in PAIRS.values():
        with pytest.raises(ValueError, match=r"\[B, H, W, C\], not \[4, 4, 3\]"):
            fast(x[0], kernel)
        with pytest.raises(ValueError, match=r"\[4, 4, C, O\], not \[3, 4, 3, 5\]"):
            fast(x, kernel[:3])
        with pytest.raises(ValueError, match="2 channels"):
            fast(x[..., :2], kernel)
        with pytest.raises(ValueError, match="bfloat16"):
            fast(x.astype(jnp.bfloat16), kernel)
    with pytest.raises(ValueError, match="not 1x4"):
        layers.strided_conv(x[:, :1], kernel)


def test_convolution_modules_match_flax_and_keep_float32_parameters():
    x, _ = arrays((2, 12, 12, 3, 5), jnp.float32)
    pairs = [
        (layers.StridedConv(5), nn.Conv(5, (4, 4), 2, padding=1)),
        (layers.StridedConvTranspose(5), nn.ConvTranspose(5, (4, 4), (2, 2))),
    ]
    for ours, flax_layer in pairs:
        variables = ours.init(jax.random.key(0), x)
        np.testing.assert_allclose(
            ours.apply(variables, x), flax_layer.apply(variables, x), atol=1e-5
        )
        low = ours.clone(dtype=jnp.bfloat16, use_bias=False)
        variables = low.init(jax.random.key(0), x)
        assert {k: v.dtype for k, v in variables["params"].items()} == {"kernel": jnp.float32}
        assert low.apply(variables, x).dtype == jnp.bfloat16


def test_project_to_map_is_a_transposed_convolution_of_a_1x1_map():
    layer = layers.ProjectToMap(size=3, features=5)
    z = jnp.linspace(-1.0, 1.0, 8).reshape(2, 4)
    variables = layer.init(jax.random.key(0), z)
    kernel = variables["params"]["kernel"]
    # The window of `lax.conv_transpose` runs over the padded map and meets the taps in reverse.
    plain = jax.lax.conv_transpose(
        z[:, None, None],
        kernel.transpose(1, 2, 0, 3)[::-1, ::-1],
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(layer.apply(variables, z), plain, atol=1e-6)


def test_normal_init_has_flax_numbers():
    key, shape = jax.random.key(3), (20, 7)
    ours = layers.normal_init()(key, shape, jnp.float32)
    np.testing.assert_array_equal(ours, nn.initializers.normal(0.02)(key, shape, jnp.float32))
    assert layers.normal_init(0.5)(key, shape, jnp.bfloat16).dtype == jnp.bfloat16


def test_batch_norm_keeps_float32_statistics():
    norm = layers.batch_norm(train=True, dtype=jnp.bfloat16)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2, 2, 3)), jnp.bfloat16)
    y, variables = jax.jit(norm.init_with_output)(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    _, updates = jax.jit(lambda v: norm.apply(v, x, mutable=["batch_stats"]))(variables)
    expected = 0.1 * np.asarray(x, np.float32).mean((0, 1, 2))
    np.testing.assert_allclose(updates["batch_stats"]["mean"], expected, atol=1e-5)
