import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skin_jax.base.errors import UserError
from skin_jax.models import pretrained
from skin_jax.models.cnn import Cnn

TINY = Cnn(7, widths=(4, 8))


def random_variables(network, images, rng):
    shapes = jax.eval_shape(lambda key: network.init(key, images, train=True), jax.random.key(0))
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(leaf.ndim == 1, 0.2, leaf.shape), leaf.dtype), shapes
    )


class Reference(nn.Module):
    """The same network in Flax's own layers, two stages."""

    @nn.compact
    def __call__(self, x):
        for i, features in enumerate((4, 8)):
            if i:
                x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
            for j in range(2):
                name = f"stage{i}_block{j}"
                x = nn.Conv(features, (3, 3), use_bias=False, name=f"{name}_conv")(x)
                norm = nn.BatchNorm(use_running_average=False, momentum=0.9, name=f"{name}_norm")
                x = nn.relu(norm(x))
        return nn.Dense(7, name="logits")(x.mean(axis=(1, 2)))


def as_reference(part):
    """Variables of TINY under the names of the reference."""
    flat = {}
    for block, layers in part.items():
        for layer, leaves in layers.items():
            flat[layer if block == "head" else f"{block}_{layer}"] = leaves
    return flat


def test_it_is_the_network_that_flax_s_own_layers_make():
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(-1, 1, (3, 33, 40, 3)), jnp.float32)
    variables = random_variables(TINY, images, rng)
    output, changed = jax.jit(lambda v: TINY.apply(v, images, train=True, mutable=["batch_stats"]))(
        variables
    )
    expected, stats = Reference().apply(
        {collection: as_reference(part) for collection, part in variables.items()},
        images,
        mutable=["batch_stats"],
    )
    np.testing.assert_allclose(output.logits, expected, atol=1e-4)
    found = as_reference(changed["batch_stats"])
    for name, leaves in stats["batch_stats"].items():
        for kind in ("mean", "var"):
            np.testing.assert_allclose(found[name][kind], leaves[kind], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("size", "map_size"), [(32, 4), (64, 8), (97, 13)])
def test_the_default_takes_any_size_from_32(size, map_size):
    net = Cnn(7)
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    out, variables = jax.eval_shape(
        lambda key, x: net.init_with_output(key, x, train=True), jax.random.key(0), images
    )
    # 9 (3 24 + 24 24 + 24 48 + 48 48 + ...) weights, 2 for each norm's channel, and the head.
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 661_807
    assert out.logits.shape == (2, 7)
    assert out.features.shape == (2, map_size, map_size, 192)
    assert out.pooled.shape == (2, 192)


def test_the_width_multiplier_scales_every_stage():
    net = Cnn(7, width_multiplier=0.25)
    shapes = jax.eval_shape(
        lambda key: net.init(key, jnp.zeros((1, 32, 32, 3)), train=True), jax.random.key(0)
    )
    widths = [shapes["params"][f"stage{i}_block1"]["norm"]["scale"].size for i in range(4)]
    assert widths == [6, 12, 24, 48]


def test_weights_for_it_are_refused_before_any_file_is_looked_for():
    with pytest.raises(
        UserError, match=r"config.model.weights is x.safetensors, but a Cnn"
    ) as error:
        pretrained.load({}, TINY, "x.safetensors")
    assert len(str(error.value).splitlines()) == 1
