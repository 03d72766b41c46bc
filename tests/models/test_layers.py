import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skin_jax.models import layers


def relative_error(ours, plain):
    assert (ours.shape, ours.dtype) == (plain.shape, plain.dtype)
    return float(np.max(np.abs(ours - plain)) / np.max(np.abs(plain)))


def test_convolution_modules_match_flax_and_keep_float32_parameters():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 12, 12, 3)), jnp.float32)
    pairs = [
        (layers.Conv(5, 4, 2, 1, use_bias=True), nn.Conv(5, (4, 4), 2, padding=1)),
        (layers.StridedConvTranspose(5, use_bias=True), nn.ConvTranspose(5, (4, 4), (2, 2))),
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


@pytest.mark.parametrize(
    ("size", "stride", "padding", "shape"),
    [
        *((1, 1, 0, (8, 11)), (1, 2, 0, (8, 11)), (3, 1, 1, (8, 11)), (3, 2, 1, (8, 11))),
        *((3, 1, "SAME", (8, 11)), (3, 2, "SAME", (8, 11)), (7, 2, 3, (8, 11))),
        *((4, 2, 1, (8, 11)), (4, 1, 0, (8, 11)), (4, 1, 0, (4, 4))),
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


def test_batch_norm_takes_a_gain_and_a_shift_of_each_example():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(0.5, 2.0, (4, 3, 5, 6)), jnp.float32)
    gain, shift = (jnp.asarray(rng.normal(size=(4, 1, 1, 6)), jnp.float32) for _ in range(2))
    norm = layers.BatchNorm()
    variables = norm.init(jax.random.key(0), x, train=True)

    def apply(x, **modulation):
        return norm.apply(variables, x, train=True, mutable=["batch_stats"], **modulation)[0]

    def together(x, gain, shift):
        return apply(x, gain=gain, shift=shift)

    def apart(x, gain, shift):
        return apply(x) * (1.0 + gain) + shift

    for a, b in zip(
        *(
            jax.tree.leaves(jax.jit(lambda f=f: _with_cotangents(f, x, gain, shift))())
            for f in (together, apart)
        ),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def _with_cotangents(f, *arguments):
    y, pull = jax.vjp(f, *arguments)
    return y, pull(jnp.sin(y))


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


def largest_singular_value(kernel):
    return float(np.linalg.svd(np.reshape(kernel, (-1, kernel.shape[-1])), compute_uv=False)[0])


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.Conv(6, 3, 1, 1, spectral_norm=True), (2, 5, 5, 4)),
        (layers.StridedConvTranspose(6, spectral_norm=True), (2, 5, 5, 4)),
        (layers.UpsampledConv(6, spectral_norm=True), (2, 5, 5, 4)),
        (layers.ProjectToMap(6, 2, spectral_norm=True), (2, 4)),
    ],
    ids=["conv", "conv_transpose", "upsampled", "project"],
)
def test_spectral_norm_divides_by_the_largest_singular_value(layer, shape):
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    plain = layer.clone(spectral_norm=False)
    variables = layer.init(jax.random.key(0), x)
    params, u = variables["params"], variables["batch_stats"]
    largest = largest_singular_value(params["kernel"])
    step = jax.jit(lambda u: layer.apply({"params": params, "batch_stats": u}, x, mutable=True))
    for _ in range(100):
        y, updated = step(u)
        u = updated["batch_stats"]
    expected = plain.apply({"params": params}, x) / largest
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-5)
    in_evaluation = layer.apply({"params": params, "batch_stats": u}, x)
    np.testing.assert_allclose(in_evaluation, expected, rtol=1e-3, atol=1e-5)
    # One step of the iteration is never above the norm, and a fresh one is near it already.
    fresh = layer.apply(variables, x) / plain.apply({"params": params}, x)
    assert 1.0 / largest <= float(np.median(fresh)) * 1.0001 < 3.0 / largest


def test_the_gradient_of_a_spectrally_normalised_kernel_keeps_its_norm():
    layer = layers.Conv(6, 3, spectral_norm=True)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 5, 4)), jnp.float32)
    variables = layer.init(jax.random.key(0), x)

    def loss(params):
        return jnp.sum(jnp.sin(layer.apply({**variables, "params": params}, x)))

    gradient = jax.grad(loss)(variables["params"])["kernel"]
    # The output does not change with the length of the kernel.
    along = float(jnp.sum(gradient * variables["params"]["kernel"]))
    assert abs(along) < 1e-4 * float(jnp.linalg.norm(gradient.ravel()))


def test_spectral_norm_in_bfloat16_measures_in_float32_and_works_under_vmap():
    layer = layers.Conv(6, 3, spectral_norm=True, dtype=jnp.bfloat16)
    x = jnp.ones((2, 5, 5, 4), jnp.bfloat16)
    keys = jax.random.split(jax.random.key(0), 2)
    variables = jax.vmap(lambda key: layer.init(key, x))(keys)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    y, updated = jax.jit(jax.vmap(lambda v: layer.apply(v, x, mutable=["batch_stats"])))(variables)
    assert y.dtype == jnp.bfloat16
    second = jax.tree.map(lambda leaf: leaf[1], variables)
    _, alone = layer.apply(second, x, mutable=["batch_stats"])
    np.testing.assert_allclose(
        updated["batch_stats"]["u"][1], alone["batch_stats"]["u"], rtol=1e-4, atol=1e-5
    )
