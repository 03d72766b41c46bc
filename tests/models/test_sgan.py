import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skin_jax.models.sgan import Discriminator, Generator


def shapes_of(module, x):
    """Variables and output of `module` on `x`, as shapes, without computing them."""
    return jax.eval_shape(
        lambda key: module.init_with_output(key, jnp.zeros(x, jnp.float32), train=False)[::-1],
        jax.random.key(0),
    )


def kernels(variables):
    flat = jax.tree_util.tree_flatten_with_path(variables["params"])[0]
    return [leaf.shape for path, leaf in flat if path[-1].key == "kernel"]


def count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize("size", [32, 64, 224])
def test_generator_shapes_layers_and_parameters(size):
    variables, images = shapes_of(Generator(size), (2, 128))
    assert images.shape == (2, size, size, 3)
    assert images.dtype == jnp.float32
    s = size // 16
    assert kernels(variables) == [
        (128, s, s, 512),
        (4, 4, 512, 256),
        (4, 4, 256, 128),
        (4, 4, 128, 64),
        (4, 4, 64, 3),
    ]
    convolutions = 128 * s * s * 512 + 2_097_152 + 524_288 + 131_072 + 3_072
    norms = 2 * (512 + 256 + 128 + 64)
    assert count(variables) == convolutions + norms + 3


@pytest.mark.parametrize("size", [32, 64, 224])
def test_discriminator_shapes_layers_and_parameters(size):
    variables, output = shapes_of(Discriminator(), (2, size, size, 3))
    assert output.logits.shape == (2, 8)
    assert output.logits.dtype == jnp.float32
    s = size // 16
    assert output.features.shape == (2, s, s, 512)
    assert kernels(variables) == [
        (4, 4, 3, 64),
        (4, 4, 64, 128),
        (4, 4, 128, 256),
        (4, 4, 256, 512),
        (s * s * 512, 8),
    ]
    convolutions = 3_072 + 131_072 + 524_288 + 2_097_152 + (64 + 128 + 256 + 512)
    assert count(variables) == convolutions + s * s * 512 * 8 + 8


def test_batch_statistics_exist_only_with_batch_norm():
    for batch_norm, names in ((True, {"norm1", "norm2", "norm3", "norm4"}), (False, set())):
        variables, _ = shapes_of(Generator(32, width=4, batch_norm=batch_norm), (1, 8))
        assert set(variables.get("batch_stats", {})) == names
        has_bias = {name for name, layer in variables["params"].items() if "bias" in layer}
        biased = {"layer5"} if batch_norm else {f"layer{i}" for i in range(1, 6)}
        assert has_bias - names == biased
    for batch_norm, names in ((True, {"norm2", "norm3", "norm4"}), (False, set())):
        variables, _ = shapes_of(Discriminator(width=4, batch_norm=batch_norm), (1, 32, 32, 3))
        assert set(variables.get("batch_stats", {})) == names


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dtypes_and_ranges(dtype):
    generator = Generator(32, width=4, dtype=dtype)
    discriminator = Discriminator(width=4, batch_norm=True, dtype=dtype)

    @jax.jit
    def run(key):
        z = 100.0 * jax.random.normal(key, (4, 8))
        images, g = generator.init_with_output(key, z, train=True)
        output, d = discriminator.init_with_output(key, images, train=True)
        return images, output, g, d

    images, output, g, d = run(jax.random.key(0))
    assert images.dtype == jnp.float32
    assert float(jnp.max(jnp.abs(images))) <= 1.0
    assert float(jnp.std(images)) > 1e-3
    assert output.features.dtype == dtype
    assert output.logits.dtype == jnp.float32
    assert bool(jnp.all(jnp.isfinite(output.logits)))
    assert {leaf.dtype for leaf in jax.tree.leaves((g, d))} == {jnp.dtype(jnp.float32)}


def test_training_updates_statistics_and_evaluation_uses_them():
    generator = Generator(32, width=4)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8)), jnp.float32)

    @jax.jit
    def run(key):
        variables = generator.init(key, z, train=True)
        _, updates = generator.apply(variables, z, train=True, mutable=["batch_stats"])
        one = generator.apply(variables, z[:1], train=False)
        return variables, updates, one, generator.apply(variables, z, train=False)

    variables, updates, one, several = run(jax.random.key(0))
    before, after = variables["batch_stats"]["norm4"], updates["batch_stats"]["norm4"]
    assert not np.allclose(before["var"], after["var"])
    np.testing.assert_allclose(one, several[:1], atol=1e-5)


def test_initial_kernels_are_normal_with_standard_deviation_0_02():
    variables = jax.jit(
        lambda key: Discriminator(width=16).init(key, jnp.zeros((1, 32, 32, 3)), train=True)
    )(jax.random.key(0))
    kernel = np.asarray(variables["params"]["layer4"]["kernel"])
    assert abs(kernel.mean()) < 5 * 0.02 / np.sqrt(kernel.size)
    assert abs(kernel.std() - 0.02) < 5 * 0.02 / np.sqrt(2 * kernel.size)


@pytest.mark.parametrize("size", [0, 16, 33, 100])
def test_sizes_that_are_no_multiple_of_32_are_named(size):
    with pytest.raises(ValueError, match=f"multiple of 32, not {size}"):
        shapes_of(Generator(size), (1, 8))
    with pytest.raises(ValueError, match=f"multiple of 32, not {size}"):
        shapes_of(Discriminator(), (1, size, size, 3))
