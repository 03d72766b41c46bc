import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skin_jax import config as config_lib
from skin_jax import tasks
from skin_jax.base.errors import UserError
from skin_jax.data.classes import HAM10000
from skin_jax.tasks import losses, settings, sgan
from skin_jax.tasks.state import digest

RNG = jax.random.key(0)
BATCH = {
    "image": np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8),
    "label": np.array([0, 5, 5, 3], np.int32),
    "position": np.arange(4, dtype=np.uint32),
    "mask": np.ones(4, np.float32),
}
REAL = jnp.asarray(BATCH["image"], jnp.float32) / 127.5 - 1


def make(**changes) -> sgan.Sgan:
    config = sgan.defaults()
    plain = {"crop": 1.0, "flip": False, "rotate90": False, "rotation": 0.0, "blur_sigma": 0.0}
    plain["salt_and_pepper"] = 0.0
    small = {"data.image_size": 32, "model.width": 4, "model.noise_size": 8}
    small |= {f"augment.{key}": value for key, value in plain.items()}
    config.update_from_flattened_dict(
        small | {key.replace("__", "."): value for key, value in changes.items()}
    )
    config_lib.validate(config)
    return tasks.build(config, HAM10000.names, np.array([1, 2, 3, 4, 5, 6, 7]), 10, 5.0)


def noise(task: sgan.Sgan, count: int = 4) -> jax.Array:
    return jax.random.normal(RNG, (count, task.noise_size))


def generated(task: sgan.Sgan, state) -> jax.Array:
    return task.generator.apply(
        state.generator.variables, noise(task), train=True, mutable=["batch_stats"]
    )[0]


def step_and_leave(state, batch=BATCH, **changes):
    return jax.jit(make(**changes).train_step)(state, batch, RNG)


@pytest.fixture(scope="module")
def state():
    return make().init(RNG)


def test_a_step_moves_both_networks_and_counts(state):
    new, metrics = step_and_leave(state)
    assert int(new.step) == 1
    assert digest(new.generator.params) != digest(state.generator.params)
    assert digest(new.discriminator.params) != digest(state.discriminator.params)
    assert digest(new.generator.batch_stats) != digest(state.generator.batch_stats)
    assert all(np.isfinite(v) for v in metrics.values())
    assert set(make().headline) <= set(metrics)


def test_the_discriminator_step_sends_no_gradient_to_the_generator(state):
    task = make()

    def through_the_generator(params):
        images, _ = task.generator.apply(
            state.generator.variables | {"params": params},
            noise(task),
            train=True,
            mutable=["batch_stats"],
        )
        network, metrics = task.discriminator_step(
            state.discriminator, REAL, jnp.asarray(BATCH["label"]), images, state.step
        )
        return metrics["d_loss"] + sum(jnp.sum(x) for x in jax.tree.leaves(network.params))

    grads = jax.grad(through_the_generator)(state.generator.params)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(grads))


def test_the_generator_objective_leaves_the_discriminator_and_its_statistics_untouched():
    task = make(model__discriminator_batch_norm=True)
    state = task.init(RNG)
    before = digest(state.discriminator)
    loss, grads = jax.value_and_grad(task.generator_objective)(
        generated(task, state), REAL, state.discriminator
    )
    assert np.isfinite(loss)
    assert grads.shape == REAL.shape
    assert np.abs(grads).max() > 0
    assert digest(state.discriminator) == before


def test_running_statistics_come_from_the_real_pass_alone():
    task = make(model__discriminator_batch_norm=True)
    state = task.init(RNG)

    def statistics(images):
        network, _ = task.discriminator_step(
            state.discriminator, REAL, jnp.asarray(BATCH["label"]), images, state.step
        )
        return network.batch_stats

    expected = statistics(jnp.zeros_like(REAL))
    assert digest(statistics(generated(task, state))) == digest(expected)
    new, _ = jax.jit(task.train_step)(state, BATCH, RNG)  # the generator's step comes after
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        new.discriminator.batch_stats,
        expected,
    )


@pytest.mark.as_compiled(only=True)
def test_the_generator_meets_the_new_discriminator_or_the_old_one(state):
    sequential, seq = step_and_leave(state)
    simultaneous, sim = step_and_leave(state, loss__updates="simultaneous")
    assert digest(sequential.discriminator) == digest(simultaneous.discriminator)
    assert digest(sequential.generator.params) != digest(simultaneous.generator.params)
    assert float(seq["g_loss"]) != float(sim["g_loss"])


@pytest.mark.parametrize("reading", losses.READINGS)
@pytest.mark.parametrize("objective", ["minimax", "non_saturating", "feature_matching"])
def test_every_reading_and_objective_moves_the_generator(state, reading, objective):
    new, _ = step_and_leave(state, loss__reading=reading, loss__generator=objective)
    assert digest(new.generator.params) != digest(state.generator.params)
    assert int(new.nonfinite) == 0


def test_a_step_that_is_not_finite_leaves_the_whole_state(state):
    params = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(np.nan), state.discriminator.params)
    broken = state.replace(discriminator=state.discriminator.replace(params=params))
    new, _ = step_and_leave(broken)
    assert (int(new.step), int(new.nonfinite)) == (1, 1)
    assert digest(new.generator) == digest(broken.generator)
    assert digest(new.discriminator) == digest(broken.discriminator)


def test_pseudo_labels_start_at_their_epoch(state):
    changes = {"loss__generated_images": "pseudo_label", "loss__pseudo_label_threshold": 0.1}
    _, early = step_and_leave(state, loss__pseudo_label_from_epoch=1, **changes)
    assert float(early["d_pseudo_label"]) == 0.0
    _, late = step_and_leave(
        state.replace(step=jnp.array(5, jnp.int32)), loss__pseudo_label_from_epoch=1, **changes
    )
    assert float(late["d_pseudo_label"]) > 0.5
    _, off = step_and_leave(state)
    assert "d_pseudo_label" not in off


def test_prediction_is_a_distribution_over_the_seven_classes_and_ignores_the_fake_output(state):
    task = make()
    probabilities = task.predict(state, BATCH["image"])
    assert probabilities.shape == (4, 7)
    np.testing.assert_allclose(probabilities.sum(axis=1), np.ones(4), rtol=1e-6)
    params = state.discriminator.params
    head = params["layer5"]
    shifted = {**params, "layer5": {**head, "bias": head["bias"].at[7].add(3.0)}}
    moved = state.replace(discriminator=state.discriminator.replace(params=shifted))
    np.testing.assert_array_equal(task.predict(moved, BATCH["image"]), probabilities)


def test_prediction_and_samples_use_the_average_where_it_is_on():
    task = make(ema_decay=0.9)
    state = task.init(RNG)
    zeros = jax.tree.map(jnp.zeros_like, state.ema)
    averaged = state.replace(ema=zeros)
    np.testing.assert_allclose(task.predict(averaged, BATCH["image"]), np.full((4, 7), 1 / 7))
    noise = task.noise(jax.random.split(RNG, 3))
    assert noise.shape == (3, task.noise_size)
    images = task.images_of(task.generators(averaged), 0, noise)
    np.testing.assert_array_equal(images, np.zeros((3, 32, 32, 3)))
    assert np.abs(task.images_of(task.generators(state), 0, noise)).max() > 0


def test_features_are_the_means_of_the_averaged_discriminator_s_last_activations(state):
    task = make(precision="bf16")
    features = task.features(state, BATCH["image"])
    assert features.dtype == jnp.float32
    last = make().discriminator.apply(state.discriminator.variables, REAL, train=False).features
    np.testing.assert_allclose(features, np.mean(last, axis=(1, 2)), atol=0.02)
    assert features.shape == (4, 32)
    averaging = make(ema_decay=0.9)
    averaged = averaging.init(RNG)
    zeros = averaged.replace(ema=jax.tree.map(jnp.zeros_like, averaged.ema))
    np.testing.assert_array_equal(averaging.features(zeros, BATCH["image"]), np.zeros((4, 32)))


def test_class_weights():
    counts = np.array([1, 2, 3, 4, 5, 6, 7])
    np.testing.assert_array_equal(settings.class_weights("none", counts), np.ones(7, np.float32))
    weights = settings.class_weights("balanced", counts)
    np.testing.assert_allclose((weights * counts).sum() / counts.sum(), 1.0, rtol=1e-6)
    np.testing.assert_allclose(weights[0] / weights[6], 7.0, rtol=1e-6)
    assert np.isfinite(settings.class_weights("balanced", np.array([0, 1, 1, 1, 1, 1, 1]))).all()


def test_bf16_keeps_parameters_losses_and_probabilities_in_float32(state):
    new, metrics = step_and_leave(state, precision="bf16")
    assert {x.dtype for x in jax.tree.leaves(new.generator.params)} == {jnp.dtype("float32")}
    assert {v.dtype for v in metrics.values()} == {jnp.dtype("float32")}
    assert make(precision="bf16").predict(new, BATCH["image"]).dtype == jnp.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__image_size": 50}, r"config.data.image_size: .* multiple of 32, not 50"),
        ({"model__width": 0}, r"config.model.width is 0"),
        ({"model__noise_size": -1}, r"config.model.noise_size is -1"),
        ({"optimizer__learning_rate": -1.0}, r"config.optimizer.learning_rate is -1.0"),
        ({"ema_decay": 1.5}, r"config.ema_decay is 1.5; it must be below 1"),
        ({"loss__reading": "other"}, r"config.loss.reading is 'other'; .*'separate'"),
        ({"loss__generator": "w"}, r"config.loss.generator"),
        ({"loss__generated_images": "w"}, r"config.loss.generated_images"),
        ({"loss__class_weights": "w"}, r"config.loss.class_weights"),
        ({"loss__updates": "w"}, r"config.loss.updates"),
        ({"precision": "fp8"}, r"config.precision is 'fp8'"),
        ({"augment__crop": 0.0}, r"config.augment.crop is 0.0; it must be above 0"),
        ({"task": "vae"}, r"config.task is 'vae'; it can be 'sgan'"),
    ],
)
def test_wrong_settings_name_their_key(changes, message):
    with pytest.raises(UserError, match=message):
        make(**changes)
