import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skin_jax.models.densenet import DenseNet

TINY = DenseNet(7, width_multiplier=1 / 8, block_sizes=(2, 1))


def test_a_tiny_variant_equals_pytorch(parity, golden):
    found = parity.errors("densenet", True, golden("densenet"), gradients=True)
    assert all(found[k] < 1e-5 for k in ("logits", "pooled", "mean", "var"))
    assert found["gradients"] < 1e-4


def test_densenet121_equals_pytorch(parity):
    pytest.importorskip("torch")
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), np.uint8)
    results = parity.torch_results("densenet", False, images)
    assert max(parity.errors("densenet", False, results, gradients=False).values()) < 1e-4


def test_the_default_is_densenet121():
    net = DenseNet(1000)
    images = jax.ShapeDtypeStruct((2, 97, 130, 3), jnp.float32)
    out, variables = jax.eval_shape(
        lambda key, x: net.init_with_output(key, x, train=True), jax.random.key(0), images
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 7_978_856
    assert out.logits.shape == (2, 1000)
    assert out.features.shape == (2, 3, 4, 1024)
    assert out.pooled.shape == (2, 1024)


def test_images_too_small_for_the_poolings_are_refused():
    net = DenseNet(7, width_multiplier=1 / 8, block_sizes=(1, 1, 1, 1))

    def shapes(size):
        images = jnp.zeros((1, size, size, 3))
        return jax.eval_shape(lambda key: net.init(key, images, train=True), jax.random.key(0))

    shapes(29)
    with pytest.raises(ValueError, match="28x28 are too small"):
        shapes(28)
