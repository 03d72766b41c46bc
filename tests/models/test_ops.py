import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skin_jax.models import ops

# Batch 1, one and three channels, odd sizes, and maps in both forms of a transposed convolution.
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
    "conv": (ops.strided_conv, plain_conv),
    "conv_transpose": (ops.strided_conv_transpose, plain_conv_transpose),
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


def test_the_form_for_other_back_ends_equals_the_one_for_cpus():
    with jax.enable_x64(True):
        x, kernel = arrays((2, 13, 12, 3, 4), jnp.float64)
        assert (
            relative_error(
                ops._subpixel_conv_transpose(x, kernel), ops._plain_conv_transpose(x, kernel)
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
        ops.strided_conv(x[:, :1], kernel)


@pytest.mark.parametrize("shape", [(1, 4, 4, 3, 5), (2, 7, 9, 2, 3), (1, 12, 8, 1, 2)], ids=str)
def test_an_upsampled_convolution_is_a_bilinear_one_but_for_its_border(shape):
    B, H, W, C, O = shape  # noqa: E741
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, kernel = jnp.asarray(rng.normal(size=(B, H, W, C))), rng.normal(size=(3, 3, C, O))

        def plain(x, kernel):
            doubled = jax.image.resize(x, (B, 2 * H, 2 * W, C), "bilinear")
            return jax.lax.conv_general_dilated(
                doubled, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )

        # A cotangent of 0 at the border, where the two differ.
        inside = np.zeros((B, 2 * H, 2 * W, O))
        inside[:, 2:-2, 2:-2] = rng.normal(size=(B, 2 * H - 4, 2 * W - 4, O))

        @jax.jit
        def both(x, kernel):
            found = []
            for f in (ops.upsampled_conv, plain):
                y, pull = jax.vjp(f, x, kernel)
                found.append((y[:, 2:-2, 2:-2], *pull(jnp.asarray(inside))))
            return found

        for a, b in zip(*both(x, kernel), strict=True):
            assert relative_error(np.asarray(a), np.asarray(b)) < 1e-12


def test_a_blur_repeats_its_edges_and_is_its_own_gradient():
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 3)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    taps = np.outer([1, 2, 1], [1, 2, 1]) / 16
    expected = sum(taps[i, j] * padded[:, i : i + 4, j : j + 5] for i in range(3) for j in range(3))
    y, pull = jax.vjp(ops.blur, jnp.asarray(x))
    np.testing.assert_allclose(y, expected, atol=1e-6)
    dy = np.cos(np.arange(x.size, dtype=np.float32)).reshape(x.shape)
    assert np.sum(y * dy) == pytest.approx(float(np.sum(x * pull(jnp.asarray(dy))[0])), rel=1e-4)


# B, H, W, C, kernel size, stride, padding: odd sizes, one example, rows that no window reaches.
DEPTHWISE = [
    (1, 5, 7, 3, 3, 1, ((1, 1), (1, 1))),
    (2, 8, 8, 4, 3, 2, ((0, 1), (0, 1))),
    (2, 9, 6, 2, 3, 2, ((1, 1), (0, 1))),
    (1, 6, 6, 2, 3, 2, ((0, 0), (0, 0))),
    (2, 4, 5, 3, 5, 1, ((2, 2), (2, 2))),
    (2, 8, 7, 2, 5, 2, ((1, 2), (2, 2))),
    (1, 1, 2, 2, 5, 2, ((2, 2), (1, 2))),
    (1, 11, 10, 1, 4, 3, ((0, 3), (1, 0))),
]


def depthwise_arrays(case, dtype):
    B, H, W, C, k, _, _ = case
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(B, H, W, C)), dtype)
    return x, jnp.asarray(rng.normal(size=(k, k, 1, C)), dtype)


def depthwise_pair(case):
    C, _, stride, padding = case[3:]

    def plain(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=C,
        )

    return lambda x, kernel: ops.depthwise_conv(x, kernel, stride, padding), plain


@pytest.mark.parametrize("case", DEPTHWISE, ids=str)
def test_depthwise_values_and_gradients_equal_the_plain_form_in_float64(case):
    fast, plain = depthwise_pair(case)

    def everything(f, x, kernel):
        y, pull = jax.vjp(f, x, kernel)
        return (y, *pull(jnp.sin(y)))

    with jax.enable_x64(True):
        x, kernel = depthwise_arrays(case, jnp.float64)
        ours, theirs = jax.jit(lambda x, k: (everything(fast, x, k), everything(plain, x, k)))(
            x, kernel
        )
        for a, b in zip(ours, theirs, strict=True):
            assert relative_error(np.asarray(a), np.asarray(b)) < 1e-12


def test_depthwise_second_derivatives_and_vmap_equal_the_plain_form():
    case = DEPTHWISE[2]

    def penalty(f):
        def gradient_norm(x, k):
            return jnp.sum(jax.grad(lambda x: jnp.sum(f(x, k) ** 3))(x) ** 2)

        return jax.jit(jax.vmap(jax.grad(gradient_norm, argnums=(0, 1))))

    with jax.enable_x64(True):
        x, kernel = depthwise_arrays(case, jnp.float64)
        stacked = jnp.stack([x, 2.0 * x]), jnp.stack([kernel, kernel[::-1]])
        fast, plain = (penalty(f)(*stacked) for f in depthwise_pair(case))
        for a, b in zip(fast, plain, strict=True):
            assert relative_error(np.asarray(a), np.asarray(b)) < 1e-10


def test_depthwise_in_bfloat16_sums_the_kernels_gradient_in_float32():
    case = (64, 8, 8, 2, 3, 1, ((1, 1), (1, 1)))
    fast, _ = depthwise_pair(case)

    @jax.jit
    def everything(x, kernel):
        y, pull = jax.vjp(fast, x, kernel)
        return y, *pull(jnp.ones_like(y))

    x, kernel = depthwise_arrays(case, jnp.bfloat16)
    low = everything(x, kernel)
    assert {a.dtype for a in low} == {jnp.dtype(jnp.bfloat16)}
    exact = everything(x.astype(jnp.float32), kernel.astype(jnp.float32))[2]
    assert relative_error(low[2].astype(jnp.float32), exact) < 0.01


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 8)], ids=str)
def test_max_pool_equals_flax_with_its_gradient(size):
    x = np.random.default_rng(0).permutation(2 * 3 * size[0] * size[1]).astype(np.float32)
    x = jnp.asarray(x.reshape(2, *size, 3) - 20.0)

    def plain(x):
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

    for a, b in zip(
        *(
            jax.jit(lambda x, f=f: jax.value_and_grad(lambda x: jnp.sum(f(x) ** 2))(x))(x)
            for f in (ops.max_pool, plain)
        ),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_the_first_of_equal_maxima_has_their_gradient():
    x = np.random.default_rng(0).integers(0, 3, (2, 5, 6, 3)).astype(np.float32)
    y, pull = jax.vjp(jax.jit(ops.max_pool), x)
    (dx,) = pull(1.0 + jnp.arange(y.size, dtype=jnp.float32).reshape(y.shape))
    expected = np.zeros_like(x)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    for number, (b, i, j, c) in enumerate(np.ndindex(y.shape)):
        window = padded[b, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3, c]
        row, column = np.unravel_index(np.argmax(window), window.shape)
        expected[b, 2 * i + row - 1, 2 * j + column - 1, c] += 1.0 + number
    np.testing.assert_array_equal(dx, expected)


def test_normalize_takes_images_of_minus_one_to_one():
    levels = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = jnp.asarray(levels / 127.5 - 1.0, jnp.float32)
    ours = ops.normalize(images, mean, std, jnp.float32)
    np.testing.assert_allclose(ours, (levels / 255 - mean) / std, atol=1e-6)
    assert ops.normalize(images, mean, std, jnp.bfloat16).dtype == jnp.bfloat16
