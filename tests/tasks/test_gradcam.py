import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skin_jax import tasks
from skin_jax.data.classes import HAM10000
from skin_jax.tasks import augment
from skin_jax.tasks.declared import sgan
from skin_jax.tasks.gradcam import grad_cam

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
LABELS = np.array([0, 4, 4, 6], np.int32)


def normalised(maps):
    return maps / np.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-30)


def make(**changes):
    config = sgan.defaults()
    small = {"data.image_size": 64, "model.width": 4, "model.noise_size": 8}
    config.update_from_flattened_dict(small | changes)
    return tasks.build(config, HAM10000.names, np.ones(7, int), 10, 5.0)


def test_the_map_is_the_paper_s_formula_with_the_gradient_of_a_nonlinear_head(strict_dtypes):
    features = jnp.asarray(RNG.normal(size=(3, 5, 4, 6)), jnp.float32)
    hidden = jnp.asarray(RNG.normal(size=(6, 8)), jnp.float32)
    last = jnp.asarray(RNG.normal(size=(8, 7)), jnp.float32)
    labels = jnp.array([1, 6, 0], jnp.int32)

    def head(activations):
        return jnp.mean(jnp.tanh(activations @ hidden), axis=(1, 2)) @ last

    shape = jax.ShapeDtypeStruct(features.shape, features.dtype)
    found = grad_cam(lambda offset: (head(features + offset), features + offset), shape, labels)
    for b, label in enumerate([1, 6, 0]):
        gradient = jax.grad(lambda a, c=label: head(a[None])[0, c])(features[b])
        weights = np.asarray(gradient, np.float64).mean(axis=(0, 1))
        expected = np.maximum(
            sum(weights[k] * np.asarray(features[b, ..., k]) for k in range(6)), 0
        )
        assert expected.max() > 0
        np.testing.assert_allclose(found[b], expected / expected.max(), atol=1e-5)


def test_a_map_without_anything_for_the_class_is_zero():
    shape = jax.ShapeDtypeStruct((2, 3, 3, 4), jnp.float32)

    def forward(offset):
        features = 1.0 + offset
        return -jnp.sum(features, axis=(1, 2)), features

    found = grad_cam(forward, shape, jnp.zeros(2, jnp.int32))
    np.testing.assert_array_equal(found, np.zeros((2, 3, 3)))


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_the_discriminator_s_map_is_that_of_its_dense_head(average):
    task = make(ema_decay=average)
    state = task.init(jax.random.key(0))
    if average:  # another network than the raw one
        state = state.replace(ema=jax.tree.map(lambda x: 1.5 * x + 0.01, state.ema))
    variables = state.averaged["discriminator"]
    found = np.asarray(jax.jit(task.explain)(state, IMAGES, LABELS))
    assert found.shape == (4, 4, 4)
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() <= 1

    output = task.discriminator.apply(variables, augment.to_float(IMAGES), train=False)
    kernel = np.asarray(variables["params"]["layer5"]["kernel"]).reshape(4, 4, 32, 8)
    weights = kernel.mean(axis=(0, 1))[:, LABELS]  # the head is linear: its kernel is the gradient
    expected = np.maximum(np.einsum("bhwk,kb->bhw", output.features, weights), 0)
    assert (expected.max(axis=(1, 2)) > 0).any()
    np.testing.assert_allclose(found, normalised(expected), atol=1e-5)


def test_bf16_gives_about_the_same_map():
    state = make().init(jax.random.key(0))
    exact = make().explain(state, IMAGES, LABELS)
    rounded = make(precision="bf16").explain(state, IMAGES, LABELS)
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, exact, atol=0.1)


def test_the_place_for_gradients_changes_no_parameter_and_no_output():
    discriminator = make().discriminator
    variables = discriminator.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=True)
    assert set(variables) == {"params"}
    assert set(variables["params"]) == {f"layer{i}" for i in range(1, 6)}
    images = augment.to_float(IMAGES)
    without = discriminator.apply(variables, images, train=False)
    zeros = {"perturbations": {"features": jnp.zeros_like(without.features)}}
    with_place = discriminator.apply(variables | zeros, images, train=False)
    np.testing.assert_array_equal(with_place.logits, without.logits)
    kernel, bias = (variables["params"]["layer5"][name] for name in ("kernel", "bias"))
    logits = without.features.reshape(4, -1) @ kernel + bias[None]
    np.testing.assert_allclose(without.logits, logits, atol=1e-5)
    assert tasks.can(make(), "explain")
