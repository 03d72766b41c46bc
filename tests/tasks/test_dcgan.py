import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from skin_jax import config as config_lib
from skin_jax import tasks
from skin_jax.base.errors import UserError
from skin_jax.data.classes import HAM10000
from skin_jax.tasks import dcgan
from skin_jax.tasks.state import MAX_NONFINITE_IN_A_ROW, digest

pytestmark = pytest.mark.xdist_group("dcgan")  # one worker trains it, once

RNG = jax.random.key(3)
B = 4
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 7, B, 32, 32, 3), dtype=np.uint8)


def make(*classes: str, **changes) -> dcgan.Dcgan:
    config = dcgan.defaults()
    small = {"data.image_size": 32, "model.width": 4, "model.noise_size": 8, "batch_size": B}
    config.update_from_flattened_dict(
        small | {key.replace("__", "."): value for key, value in changes.items()}
    )
    config.classes = classes or HAM10000.names
    config_lib.validate(config)
    return tasks.build(config, HAM10000.names, np.full(7, 9), 20, 5.0)


def batch(task: dcgan.Dcgan, step: int) -> dict[str, np.ndarray]:
    """The same images for a class, whatever others are in the batch."""
    return {
        "image": IMAGES[step, task.labels].reshape(-1, 32, 32, 3),
        "label": np.repeat(task.labels, B).astype(np.int32),
    }


@functools.cache
def trained(*classes: str, stack: str = "unroll", steps: int = 10):
    """The last state, and metrics [steps, K] of each name."""
    task = make(*classes, stack=stack)
    state = jax.jit(task.init)(RNG)
    step = jax.jit(task.train_step)
    rows = []
    for number in range(steps):
        state, metrics = step(state, batch(task, number), RNG)
        rows.append(metrics)
    return state, {name: np.stack([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("stack", ["unroll", "vmap"])
def test_a_class_of_a_stack_has_the_losses_of_the_class_alone(stack):
    _, together = trained("bcc", "df", "vasc", stack=stack)
    for place, name in enumerate(("bcc", "df", "vasc")):
        _, alone = trained(name)
        for key in ("d_loss", "g_loss", "d_grad_norm", "g_grad_norm", "p_real_generated"):
            np.testing.assert_allclose(
                together[key][:, place], alone[key][:, 0], rtol=1e-5, err_msg=f"{key} of {name}"
            )


def test_the_order_in_which_classes_are_named_changes_nothing():
    one, other = make("vasc", "df"), make("df", "vasc")
    np.testing.assert_array_equal(one.labels, other.labels)
    assert digest(one.init(RNG)) == digest(other.init(RNG))


def test_classes_start_from_weights_of_their_own():
    kernel = jax.jit(make("bcc", "df").init)(RNG).gans.generator.params["layer1"]["kernel"]
    assert np.abs(kernel[0] - kernel[1]).max() > 0.01


def test_losses_are_those_of_goodfellow_et_al():
    """D's on both halves and G's through the new D, by hand from the networks' outputs."""
    plain = {f"augment__{key}": False for key in ("flip", "rotate90")}
    task = make("mel", **plain)
    state = jax.jit(task.init)(RNG)
    new, metrics = jax.jit(task.train_step)(state, batch(task, 0), RNG)
    one = jax.tree.map(lambda leaf: leaf[0], state.gans)
    after = jax.tree.map(lambda leaf: leaf[0], new.gans)
    key = jax.random.fold_in(jax.random.fold_in(RNG, 4), dcgan._NOISE)
    noise = task.noise(jax.random.split(jax.random.fold_in(key, 0), B))
    generated, _ = task.generator.apply(
        one.generator.variables, noise, train=True, mutable=["batch_stats"]
    )

    def probabilities(network, images):
        output, _ = task.discriminator.apply(
            network.variables, images, train=True, mutable=["batch_stats"]
        )
        return np.asarray(jax.nn.sigmoid(output.logits), np.float64)

    real = jnp.asarray(IMAGES[0, 4], jnp.float32) / 127.5 - 1
    on_real, on_generated = (probabilities(one.discriminator, x) for x in (real, generated))
    expected = -np.mean(np.log(on_real)) - np.mean(np.log(1 - on_generated))
    np.testing.assert_allclose(metrics["d_loss"], [expected], rtol=1e-5)
    np.testing.assert_allclose(metrics["p_real_real"], [on_real.mean()], rtol=1e-5)
    np.testing.assert_allclose(metrics["p_real_generated"], [on_generated.mean()], rtol=1e-5)
    judged = probabilities(after.discriminator, generated)
    np.testing.assert_allclose(metrics["g_loss"], [-np.mean(np.log(judged))], rtol=1e-5)


def test_a_class_that_is_not_finite_stands_still_and_the_others_go_on():
    task = make("bcc", "df", stack="vmap")
    state = task.init(RNG)
    params = state.gans.generator.params
    broken = params["layer5" if "layer5" in params else "layer4"]["kernel"].at[0].set(jnp.inf)
    params["layer5" if "layer5" in params else "layer4"]["kernel"] = broken
    step = jax.jit(task.train_step)
    new, metrics = step(state, batch(task, 0), RNG)
    np.testing.assert_array_equal(metrics["nonfinite_in_a_row"], [1, 0])
    assert not np.isfinite(metrics["g_loss"][0])

    def of(place, state):
        return digest(jax.tree.map(lambda leaf: leaf[place], state.gans.discriminator))

    assert of(0, new) == of(0, state)
    assert of(1, new) != of(1, state)
    for number in range(1, MAX_NONFINITE_IN_A_ROW + 2):
        new, metrics = step(new, batch(task, number % 12), RNG)
    np.testing.assert_array_equal(metrics["nonfinite_in_a_row"], [MAX_NONFINITE_IN_A_ROW + 2, 0])
    np.testing.assert_array_equal(new.gans.step, [MAX_NONFINITE_IN_A_ROW + 2] * 2)


def test_the_best_generator_of_each_class_is_kept_on_its_own():
    task = make("bcc", "df", stack="vmap")
    state, _ = trained("bcc", "df", stack="vmap", steps=3)
    state = task.scored(state, jnp.array([0.5, 0.7]))
    np.testing.assert_array_equal(state.best_step, [3, 3])
    first = jax.tree.map(np.asarray, state.best)
    state, _ = jax.jit(task.train_step)(state, batch(task, 3), RNG)
    state = task.scored(state, jnp.array([0.6, 0.2]))
    np.testing.assert_allclose(state.best_score, [0.5, 0.2])
    np.testing.assert_array_equal(state.best_step, [3, 4])
    for best, old, now in zip(
        *map(jax.tree.leaves, (state.best, first, task.generators(state))), strict=True
    ):
        np.testing.assert_array_equal(best[0], old[0])
        np.testing.assert_array_equal(best[1], now[1])
    state = task.scored(state, jnp.array([jnp.nan, jnp.nan]))
    np.testing.assert_allclose(state.best_score, [0.5, 0.2])


def test_images_of_a_class_come_from_its_own_averaged_generator():
    task = make("bcc", "df", stack="vmap")
    state, _ = trained("bcc", "df", stack="vmap", steps=3)
    noise = task.noise(jax.random.split(RNG, 5))
    generators = task.generators(state)
    for place, label in enumerate(task.labels):
        variables = jax.tree.map(lambda leaf, k=place: leaf[k], state.gans.ema["generator"])
        np.testing.assert_array_equal(
            task.images_of(generators, label, noise),
            task.generator.apply(variables, noise, train=False),
        )
    raw = jax.tree.leaves(state.gans.generator.params)
    averaged = jax.tree.leaves(generators["params"])
    assert any(np.abs(a - b).max() > 1e-5 for a, b in zip(raw, averaged, strict=True))


def test_noise_is_uniform_between_minus_one_and_one():
    noise = np.asarray(make("df").noise(jax.random.split(RNG, 2000)))
    assert noise.shape == (2000, 8)
    assert noise.min() >= -1
    assert noise.max() <= 1
    np.testing.assert_allclose(noise.mean(), 0, atol=0.02)
    np.testing.assert_allclose(noise.std(), 3**-0.5, rtol=0.02)


def test_ema_off_samples_the_raw_generator():
    task = make("df", ema_decay=0.0)
    state = task.init(RNG)
    assert not state.gans.ema
    assert digest(task.generators(state)) == digest(state.gans.generator.variables)


def test_adam_has_the_settings_of_radford_et_al():
    task = make("df")
    grads = {"w": jnp.array([0.3])}
    expected = optax.adam(2e-4, b1=0.5, b2=0.999)
    for optimizer in (task.generator_optimizer, task.discriminator_optimizer):
        got, _ = optimizer.update(grads, optimizer.init(grads), grads)
        want, _ = expected.update(grads, expected.init(grads))
        np.testing.assert_allclose(got["w"], want["w"], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data__image_size": 48}, "config.data.image_size: the image size must be 32, 64 or 128"),
        ({"stack": "map"}, "config.stack is 'map'; it can be 'auto', 'vmap', 'unroll'"),
        ({"data__sampling": "balanced"}, "config.data.sampling is 'balanced'"),
        ({"score__images": 1}, "config.score.images is 1"),
        ({"keep_generators_every": 0}, "config.keep_generators_every is 0"),
    ],
)
def test_settings_outside_their_range_are_refused(change, words):
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        make("df", **change)


def test_unknown_classes_are_refused_and_no_names_are_all_of_them():
    config = dcgan.defaults()
    dcgan.settle(config, HAM10000.names)
    assert config.classes == HAM10000.names
    config.classes = ("mel", "nevus")
    with pytest.raises(UserError, match=r"config.classes names 'nevus'.* out of akiec, bcc"):
        dcgan.settle(config, HAM10000.names)
