import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skin_jax.models import layers

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

    return lambda x, kernel: layers.depthwise_conv(x, kernel, stride, padding), plain


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


@pytest.mark.parametrize(
    ("size", "stride", "padding", "shape"),
    [
        *((1, 1, 0, (8, 11)), (1, 2, 0, (8, 11)), (3, 1, 1, (8, 11)), (3, 2, 1, (8, 11))),
        *((3, 1, "SAME", (8, 11)), (3, 2, "SAME", (8, 11)), (7, 2, 3, (8, 11))),
        *((3, 1, 1, (2, 2)), (3, 2, 1, (4, 5)), (3, 2, "SAME", (1, 5)), (7, 2, 3, (1, 1))),
    ],
)
def test_conv_modules_equal_flax_ones_with_their_gradients(size, stride, padding, shape):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *shape, 3)), jnp.float32)

    def flax_conv(features, groups):
        window = (size, size)
        return nn.Conv(
            features, window, stride, padding, feature_group_count=groups, use_bias=False
        )

    pairs = [(layers.Conv(4, size, stride, padding), flax_conv(4, 1))]
    if size == 3:
        pairs.append((layers.DepthwiseConv(size, stride, padding), flax_conv(3, 3)))
    for ours, theirs in pairs:
        variables = jax.jit(ours.init)(jax.random.key(0), x)

        def everything(layer, variables=variables):
            y, pull = jax.vjp(layer.apply, variables, x)
            return y, pull(jnp.sin(y))

        both = jax.jit(lambda o=ours, t=theirs, f=everything: (f(o), f(t)))()
        for a, b in zip(*map(jax.tree.leaves, both), strict=True):
            assert relative_error(a, b) < 1e-5
        low = jax.eval_shape(ours.clone(dtype=jnp.bfloat16).apply, variables, x)
        assert low.dtype == jnp.bfloat16


def test_he_init_has_its_variance():
    kernel = layers.he_init("fan_out")(jax.random.key(0), (3, 3, 50, 80), jnp.float32)
    assert float(kernel.std()) == pytest.approx((2 / (9 * 80)) ** 0.5, rel=0.02)
    kernel = layers.he_init("fan_in")(jax.random.key(0), (3, 3, 50, 80), jnp.float32)
    assert float(kernel.std()) == pytest.approx((2 / (9 * 50)) ** 0.5, rel=0.02)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 8)], ids=str)
def test_max_pool_equals_flax_with_its_gradient(size):
    x = np.random.default_rng(0).permutation(2 * 3 * size[0] * size[1]).astype(np.float32)
    x = jnp.asarray(x.reshape(2, *size, 3) - 20.0)

    def plain(x):
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

    for a, b in zip(
        *(
            jax.jit(lambda x, f=f: jax.value_and_grad(lambda x: jnp.sum(f(x) ** 2))(x))(x)
            for f in (layers.max_pool, plain)
        ),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_the_first_of_equal_maxima_has_their_gradient():
    x = np.random.default_rng(0).integers(0, 3, (2, 5, 6, 3)).astype(np.float32)
    y, pull = jax.vjp(jax.jit(layers.max_pool), x)
    (dx,) = pull(1.0 + jnp.arange(y.size, dtype=jnp.float32).reshape(y.shape))
    expected = np.zeros_like(x)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    for number, (b, i, j, c) in enumerate(np.ndindex(y.shape)):
        window = padded[b, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3, c]
        row, column = np.unravel_index(np.argmax(window), window.shape)
        expected[b, 2 * i + row - 1, 2 * j + column - 1, c] += 1.0 + number
    np.testing.assert_array_equal(dx, expected)


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_module_equals_flax_with_its_gradients(train):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(0.5, 2.0, (4, 3, 5, 6)), jnp.float32)
    ours = layers.BatchNorm(momentum=0.99, epsilon=1e-3)
    theirs = nn.BatchNorm(use_running_average=not train, momentum=0.99, epsilon=1e-3)
    variables = jax.jit(lambda key: ours.init(key, x, train=True))(jax.random.key(0))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(
        jnp.shape, jax.jit(theirs.init)(jax.random.key(0), x)
    )
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32), variables
    )

    def everything(apply):
        def f(params, x):
            return apply({**variables, "params": params}, x, mutable=["batch_stats"])

        y, pull, updated = jax.vjp(f, variables["params"], x, has_aux=True)
        return y, pull(jnp.sin(y)), updated

    def apply_ours(*args, **kwargs):
        return ours.apply(*args, train=train, **kwargs)

    for a, b in zip(
        jax.tree.leaves(jax.jit(lambda: everything(apply_ours))()),
        jax.tree.leaves(jax.jit(lambda: everything(theirs.apply))()),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_batch_norm_module_keeps_float32_statistics_of_bfloat16():
    norm = layers.BatchNorm(dtype=jnp.bfloat16)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2, 2, 3)), jnp.bfloat16)
    variables = norm.init(jax.random.key(0), x, train=True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], 0.0)
    y, updates = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.float32)}
    expected = 0.1 * np.asarray(x, np.float32).mean((0, 1, 2))
    np.testing.assert_allclose(updates["batch_stats"]["mean"], expected, atol=1e-6)


def test_normalize_takes_images_of_minus_one_to_one():
    levels = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = jnp.asarray(levels / 127.5 - 1.0, jnp.float32)
    ours = layers.normalize(images, mean, std, jnp.float32)
    np.testing.assert_allclose(ours, (levels / 255 - mean) / std, atol=1e-6)
    assert layers.normalize(images, mean, std, jnp.bfloat16).dtype == jnp.bfloat16


def test_the_head_pools_drops_out_in_training_only_and_marks_its_features():
    head = layers.ClassifierHead(4, dropout=0.5, name="head")
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5, 8)), jnp.bfloat16)
    variables = head.init(jax.random.key(0), x, train=False)
    assert set(variables) == {"params"}
    out = head.apply(variables, x, train=False)
    assert (out.logits.dtype, out.pooled.dtype) == (jnp.float32, jnp.float32)
    pooled = np.asarray(x, np.float32).mean((1, 2))
    np.testing.assert_allclose(out.pooled, pooled, atol=1e-6)
    kernel = variables["params"]["logits"]["kernel"]
    np.testing.assert_allclose(out.logits, pooled @ kernel, atol=1e-6)
    rngs = {"dropout": jax.random.key(1)}
    dropped = head.apply(variables, x, train=True, rngs=rngs)
    assert not np.allclose(dropped.logits, out.logits, atol=1e-3)
    np.testing.assert_array_equal(dropped.pooled, out.pooled)
    moved = head.apply({**variables, "perturbations": {"features": x}}, x, train=False)
    np.testing.assert_allclose(moved.pooled, 2.0 * out.pooled, rtol=0.01, atol=1e-6)
