import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skin_jax.models.dcgan import Discriminator, Generator, doublings_from_4x4

KEY = jax.random.key(0)


def shapes_of(network, shape):
    """Variables and output of a network on an input of that shape, as shapes."""
    return jax.eval_shape(
        lambda key: network.init_with_output(key, jnp.zeros(shape), train=False)[::-1], KEY
    )


def kernels(variables):
    flat = jax.tree_util.tree_flatten_with_path(variables["params"])[0]
    return [leaf.shape for path, leaf in flat if path[-1].key == "kernel"]


def count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize("size", [32, 64, 224])
def test_paper_a_has_five_layers_in_each_network_at_any_size(size):
    s = size // 16
    variables, images = shapes_of(Generator(size), (2, 128))
    assert (images.shape, images.dtype) == ((2, size, size, 3), jnp.float32)
    channels = [512, 256, 128, 64, 3]
    assert kernels(variables) == [
        (128, s, s, 512),
        *((4, 4, *pair) for pair in itertools.pairwise(channels)),
    ]
    convolutions = 128 * s * s * 512 + 2_097_152 + 524_288 + 131_072 + 3_072
    assert count(variables) == convolutions + 2 * (512 + 256 + 128 + 64) + 3

    variables, output = shapes_of(Discriminator(8), (2, size, size, 3))
    assert (output.logits.shape, output.logits.dtype) == ((2, 8), jnp.float32)
    assert output.features.shape == (2, s, s, 512)
    assert kernels(variables) == [
        *((4, 4, *pair) for pair in itertools.pairwise(channels[::-1])),
        (s * s * 512, 8),
    ]
    convolutions = 3_072 + 131_072 + 524_288 + 2_097_152 + (64 + 128 + 256 + 512)
    assert count(variables) == convolutions + s * s * 512 * 8 + 8


@pytest.mark.parametrize(("size", "doublings"), [(32, 3), (64, 4), (128, 5)])
def test_paper_b_doubles_a_map_of_4x4_until_it_is_the_image(size, doublings):
    assert doublings_from_4x4(size) == doublings
    g, images = shapes_of(Generator(size, 2, True, doublings), (3, 10))
    assert images.shape == (3, size, size, 3)
    d, output = shapes_of(Discriminator(1, 2, True, doublings), images.shape)
    assert output.logits.shape == (3, 1)
    width = 2 * 2 ** (doublings - 1)
    assert g["params"]["layer1"]["kernel"].shape == (10, 4, 4, width)
    assert d["params"][f"layer{doublings + 1}"]["kernel"].shape == (4 * 4 * width, 1)
    for network in (g, d):
        assert sum(name.startswith("layer") for name in network["params"]) == doublings + 1


@pytest.mark.parametrize("doublings", [3, 4])
def test_batch_norm_follows_all_layers_but_those_next_to_the_images(doublings):
    for batch_norm in (True, False):
        norms = {f"norm{i}" for i in range(1, doublings + 1)} if batch_norm else set()
        layers = {f"layer{i}" for i in range(1, doublings + 2)}
        g, images = shapes_of(Generator(32, 4, batch_norm, doublings), (1, 8))
        d, _ = shapes_of(Discriminator(8, 4, batch_norm, doublings), images.shape)
        for variables, normed, biased in (
            (g, norms, {f"layer{doublings + 1}"}),
            (d, norms - {"norm1"}, {"layer1", f"layer{doublings + 1}"}),
        ):
            assert set(variables.get("batch_stats", {})) == normed
            found = {name for name, layer in variables["params"].items() if "bias" in layer}
            assert found - normed == (biased if batch_norm else layers)


def test_weights_come_from_a_narrow_normal_distribution():
    for network, shape in (
        (Generator(32, 16, True, 3), (1, 100)),
        (Discriminator(8, width=16), (1, 32, 32, 3)),
    ):
        variables = jax.jit(lambda n=network, s=shape: n.init(KEY, jnp.zeros(s), train=True))()
        for layer in variables["params"].values():
            if "kernel" in layer:
                kernel = np.asarray(layer["kernel"])
                assert abs(kernel.mean()) < 5 * 0.02 / np.sqrt(kernel.size)
                assert abs(kernel.std() - 0.02) < 5 * 0.02 / np.sqrt(2 * kernel.size)


def test_training_takes_the_batch_and_evaluation_each_image_by_itself():
    network = Generator(32, width=4)
    z = jax.random.normal(KEY, (4, 8))

    @jax.jit
    def run():
        variables = network.init(KEY, z, train=True)

        def training(z):
            return network.apply(variables, z, train=True, mutable=["batch_stats"])

        (four, updates), (two, _) = training(z), training(z[:2])
        alone = [network.apply(variables, x, train=False) for x in (z, z[:1])]
        return variables["batch_stats"], updates["batch_stats"], four, two, alone

    before, after, four, two, (several, one) = run()
    assert not np.allclose(before["norm4"]["var"], after["norm4"]["var"])
    assert np.abs(four[:2] - two).max() > 1e-3
    np.testing.assert_allclose(one, several[:1], atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_activations_have_the_dtype_and_what_is_kept_is_float32(dtype):
    generator = Generator(32, 4, dtype=dtype)
    discriminator = Discriminator(8, 4, True, dtype=dtype)

    @jax.jit
    def run():
        z = 100.0 * jax.random.normal(KEY, (4, 8))
        images, g = generator.init_with_output(KEY, z, train=True)
        output, d = discriminator.init_with_output(KEY, images, train=True)
        _, state = generator.apply(
            g, z, train=True, mutable=["batch_stats", "intermediates"], capture_intermediates=True
        )
        return images, output, (g, d), state["intermediates"]

    images, output, variables, intermediates = run()
    assert images.dtype == jnp.float32
    assert float(jnp.max(jnp.abs(images))) <= 1.0
    assert float(jnp.std(images)) > 1e-3
    assert intermediates["layer2"]["__call__"][0].dtype == output.features.dtype == dtype
    assert output.logits.dtype == jnp.float32
    assert bool(jnp.all(jnp.isfinite(output.logits)))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("size", [0, 16, 33, 100])
def test_sizes_that_the_doublings_do_not_reach_are_named(size):
    for network, shape in ((Generator(size), (1, 8)), (Discriminator(8), (1, size, size, 3))):
        with pytest.raises(ValueError, match=f"multiple of 32, not {size}"):
            shapes_of(network, shape)
    with pytest.raises(ValueError, match=f"32, 64 or 128, not {size}"):
        doublings_from_4x4(size)
