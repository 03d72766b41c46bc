import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skin_jax.models.efficientnet_lite import EfficientNetLite0, Stage

TINY = EfficientNetLite0(
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


def test_the_default_is_efficientnet_lite0():
    net = EfficientNetLite0(1000)
    images = jax.ShapeDtypeStruct((2, 97, 130, 3), jnp.float32)
    out, variables = jax.eval_shape(
        lambda key, x: net.init_with_output(key, x, train=True), jax.random.key(0), images
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 4_652_008
    assert out.logits.shape == (2, 1000)
    assert out.features.shape == (2, 4, 5, 1280)
    assert out.pooled.shape == (2, 1280)


def test_the_width_multiplier_scales_the_stages_only():
    net = EfficientNetLite0(7, width_multiplier=0.5)
    images = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(lambda key: net.init(key, images, train=True), jax.random.key(0))
    widths = [shapes["params"][f"stage{i}_block0"]["project_norm"]["scale"].size for i in range(7)]
    assert widths == [8, 16, 24, 40, 56, 96, 160]
    assert shapes["params"]["stem_norm"]["scale"].shape == (32,)
    assert shapes["params"]["last_norm"]["scale"].shape == (1280,)
