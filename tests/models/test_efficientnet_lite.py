import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skin_jax.models.efficientnet_lite import LITE, EfficientNetLite, Stage, lite, taps

KEY = jax.random.key(0)
TINY = EfficientNetLite(
    7, stages=(Stage(1, 8, 2, 3, 1), Stage(2, 16, 2, 5, 2)), stem_features=8, last_features=16
)


def test_a_tiny_variant_equals_pytorch(parity, golden):
    found = parity.errors("efficientnet_lite", True, golden("efficientnet_lite"), gradients=True)
    assert all(found[k] < 1e-5 for k in ("logits", "pooled", "mean", "var"))
    assert found["gradients"] < 1e-4


def test_efficientnet_lite0_equals_pytorch(parity):
    pytest.importorskip("torch")
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), np.uint8)
    results = parity.torch_results("efficientnet_lite", False, images)
    assert max(parity.errors("efficientnet_lite", False, results, gradients=False).values()) < 1e-4


def parameters(network):
    images = jnp.zeros((1, 32, 32, 3))
    return jax.eval_shape(lambda key: network.init(key, images, train=True), jax.random.key(0))[
        "params"
    ]


def test_the_default_is_efficientnet_lite0():
    net = EfficientNetLite(1000)
    assert net == lite(0, 1000)
    images = jax.ShapeDtypeStruct((2, 97, 130, 3), jnp.float32)
    out = jax.eval_shape(
        lambda key, x: net.init_with_output(key, x, train=True)[0], jax.random.key(0), images
    )
    assert out.logits.shape == (2, 1000)
    assert out.features.shape == (2, 4, 5, 1280)
    assert out.pooled.shape == (2, 1280)


@pytest.mark.parametrize(
    ("n", "count"),
    [(0, 4_652_008), (1, 5_416_680), (2, 6_092_072), (3, 8_197_096), (4, 13_006_568)],
)
def test_the_members_have_the_published_numbers_of_parameters(n, count):
    params = parameters(lite(n, 1000))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    assert params["stem_norm"]["scale"].shape == (32,)
    assert params["last_norm"]["scale"].shape == (1280,)


def test_the_width_multiplier_scales_the_stages_only():
    params = parameters(EfficientNetLite(7, width_multiplier=0.5))
    widths = [params[f"stage{i}_block0"]["project_norm"]["scale"].size for i in range(7)]
    assert widths == [8, 16, 24, 40, 56, 96, 160]
    assert params["stem_norm"]["scale"].shape == (32,)
    assert params["last_norm"]["scale"].shape == (1280,)


@pytest.mark.parametrize(("native_size", "padding"), [(64, "SAME"), (66, [(1, 1), (1, 1)])])
def test_windows_lie_where_they_lay_at_the_native_size(native_size, padding):
    # 66 pixels are 33 rows after the stem, where TensorFlow has as much padding on all sides.
    network = TINY.clone(stages=(Stage(1, 8, 1, 3, 2),), native_size=native_size)
    images = jax.random.uniform(KEY, (2, 32, 36, 3), minval=-1.0)
    variables = network.init(KEY, images, train=False)
    _, state = network.apply(
        variables, images, train=False, mutable=["intermediates"], capture_intermediates=True
    )
    found = state["intermediates"]
    expected = jax.lax.conv_general_dilated(
        jax.nn.relu6(found["stem_norm"]["__call__"][0]),
        variables["params"]["stage0_block0"]["depthwise_conv"]["kernel"],
        (2, 2),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=8,
    )
    depthwise = found["stage0_block0"]["depthwise_conv"]["__call__"][0]
    np.testing.assert_allclose(depthwise, expected, atol=1e-5)


def test_taps_are_the_last_activations_of_each_stride():
    images = jnp.zeros((2, 64, 96, 3))
    network = lite(2, 1)
    variables = jax.eval_shape(lambda key: network.init(key, images, train=False), KEY)
    found = jax.eval_shape(lambda v: taps(network, v, images), variables)
    assert [tap.shape for tap in found] == [
        (2, 64 // stride, 96 // stride, LITE[2][stage].features)
        for stride, stage in ((4, 1), (8, 2), (16, 4), (32, 6))
    ]


def test_taps_are_what_the_network_computes():
    images = jax.random.uniform(KEY, (2, 32, 32, 3), minval=-1.0)
    variables = TINY.init(KEY, images, train=False)
    found = taps(TINY, variables, images)
    assert [tap.shape for tap in found] == [(2, 8, 8, 16)]
    # After the last stage come a convolution, a norm and the head.
    kernel, norm = (variables["params"][name] for name in ("last_conv", "last_norm"))
    running = variables["batch_stats"]["last_norm"]
    x = np.asarray(found[-1]) @ np.asarray(kernel["kernel"])[0, 0]
    x = (x - np.asarray(running["mean"])) / np.sqrt(np.asarray(running["var"]) + 1e-3)
    x = x * np.asarray(norm["scale"]) + np.asarray(norm["bias"])
    expected = TINY.apply(variables, images, train=False).features
    np.testing.assert_allclose(np.clip(x, 0.0, 6.0), expected, atol=1e-5)
