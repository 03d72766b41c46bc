import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skin_jax.models.dcgan import Discriminator, Generator

KEY = jax.random.key(0)


def variables(network, *inputs):
    return network.init(KEY, *inputs, train=True)


@pytest.mark.parametrize(("size", "doublings"), [(32, 3), (64, 4), (128, 5)])
def test_both_networks_fit_each_other_at_every_size(size, doublings):
    generator, discriminator = Generator(size, width=2), Discriminator(width=2)
    noise = jax.random.uniform(KEY, (3, 10), minval=-1.0)
    g = variables(generator, noise)
    images, _ = generator.apply(g, noise, train=True, mutable=["batch_stats"])
    assert images.shape == (3, size, size, 3)
    assert images.dtype == jnp.float32
    d = variables(discriminator, images)
    logits, _ = discriminator.apply(d, images, train=True, mutable=["batch_stats"])
    assert logits.shape == (3,)
    for network in (g["params"], d["params"]):
        assert sum(name.startswith("layer") for name in network) == doublings + 1
        assert sum(name.startswith("norm") for name in network) == doublings - (
            network is not g["params"]
        )


def test_parameters_are_those_of_radford_et_al_at_the_papers_width():
    g = jax.eval_shape(lambda: variables(Generator(64, 64), jnp.zeros((1, 100))))["params"]
    d = jax.eval_shape(lambda: variables(Discriminator(64), jnp.zeros((1, 64, 64, 3))))["params"]
    channels = [512, 256, 128, 64]
    kernels = [
        (100, 4, 4, 512),
        *((4, 4, a, b) for a, b in zip(channels, [*channels[1:], 3], strict=True)),
    ]
    assert [g[f"layer{i}"]["kernel"].shape for i in range(1, 6)] == kernels
    assert [g[f"norm{i}"]["scale"].shape for i in range(1, 5)] == [(c,) for c in channels]
    assert [d[f"layer{i}"]["kernel"].shape for i in range(1, 5)] == [
        (4, 4, a, b) for a, b in zip([3, 64, 128, 256], channels[::-1], strict=True)
    ]
    assert d["layer5"]["kernel"].shape == (4 * 4 * 512, 1)
    assert "norm1" not in d
    assert "norm5" not in d


def test_weights_come_from_a_narrow_normal_distribution():
    kernels = [
        layer["kernel"]
        for network in (
            variables(Generator(32, 16), jnp.zeros((1, 100))),
            variables(Discriminator(16), jnp.zeros((1, 32, 32, 3))),
        )
        for layer in network["params"].values()
        if "kernel" in layer
    ]
    for kernel in kernels:
        np.testing.assert_allclose(np.std(kernel), 0.02, rtol=0.1)
        assert abs(np.mean(kernel)) < 0.003


def test_evaluation_takes_each_image_by_itself_and_training_does_not():
    generator = Generator(32, width=4)
    noise = jax.random.uniform(KEY, (4, 10), minval=-1.0)
    g = variables(generator, noise)
    together = generator.apply(g, noise, train=False)
    np.testing.assert_allclose(generator.apply(g, noise[:1], train=False), together[:1], atol=1e-6)
    of_batch, _ = generator.apply(g, noise, train=True, mutable=["batch_stats"])
    alone, _ = generator.apply(g, noise[:2], train=True, mutable=["batch_stats"])
    assert np.abs(of_batch[:2] - alone).max() > 1e-3


def test_bf16_computes_in_bf16_and_returns_float32():
    noise, images = jnp.zeros((2, 10)), jnp.zeros((2, 32, 32, 3))
    for network, x in (
        (Generator(32, 4, dtype=jnp.bfloat16), noise),
        (Discriminator(4, dtype=jnp.bfloat16), images),
    ):
        made = variables(network, x)
        assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}
        outputs, state = network.apply(
            made,
            x,
            train=True,
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=True,
        )
        assert outputs.dtype == jnp.float32
        assert state["intermediates"]["layer2"]["__call__"][0].dtype == jnp.bfloat16


@pytest.mark.parametrize("size", [16, 48, 224])
def test_other_sizes_are_refused(size):
    with pytest.raises(ValueError, match="32, 64 or 128"):
        variables(Generator(size, 2), jnp.zeros((1, 10)))
    with pytest.raises(ValueError, match="32, 64 or 128"):
        variables(Discriminator(2), jnp.zeros((1, size, size, 3)))
