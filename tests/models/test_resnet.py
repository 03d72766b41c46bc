import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skin_jax.models.resnet import ResNet

TINY = ResNet(7, width_multiplier=1 / 16, stage_sizes=(1, 2))


def test_a_tiny_variant_equals_pytorch(parity, golden):
    found = parity.errors("resnet", True, golden("resnet"), gradients=True)
    assert all(found[k] < 1e-5 for k in ("logits", "pooled", "mean", "var"))
    assert found["gradients"] < 1e-4


def test_resnet50_equals_pytorch(parity):
    pytest.importorskip("torch")
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), np.uint8)
    results = parity.torch_results("resnet", False, images)
    assert max(parity.errors("resnet", False, results, gradients=False).values()) < 1e-4


def test_the_default_is_resnet50():
    net = ResNet(1000)
    images = jax.ShapeDtypeStruct((2, 97, 130, 3), jnp.float32)
    out, variables = jax.eval_shape(
        lambda key, x: net.init_with_output(key, x, train=True), jax.random.key(0), images
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 25_557_032
    assert out.logits.shape == (2, 1000)
    assert out.features.shape == (2, 4, 5, 2048)
    assert out.pooled.shape == (2, 2048)


def test_blocks_begin_as_the_identity():
    images = jnp.zeros((1, 16, 16, 3))
    params = jax.jit(lambda key: TINY.init(key, images, train=True))(jax.random.key(0))["params"]
    assert not np.any(params["stage1_block1"]["norm3"]["scale"])
    assert np.all(params["stage1_block1"]["norm2"]["scale"] == 1.0)
