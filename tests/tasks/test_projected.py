import dataclasses
import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skin_jax import config as config_lib
from skin_jax import tasks
from skin_jax.base import devices
from skin_jax.base.errors import UserError
from skin_jax.data.classes import Classes
from skin_jax.models import fastgan, pretrained
from skin_jax.models.efficientnet_lite import EfficientNetLite, Stage
from skin_jax.tasks import projected
from skin_jax.tasks.state import digest
from skin_jax.training import checkpoints
from skin_jax.training import run as run_lib

RNG = jax.random.key(3)
NAMES = ("benign", "malignant", "other")
B, SIZE = 8, 32

pytestmark = pytest.mark.xdist_group("projected")  # one worker trains it, once

# A block at two of the strides that are tapped: Lite0 would compile for half a minute.
TINY = EfficientNetLite(
    1,
    stages=tuple(Stage(1, features, 1, 3, 2) for features in (8, 16)),
    stem_features=4,
    last_features=8,
)


def build(**changes):
    config = projected.defaults()
    small = {
        "data.image_size": SIZE,
        "batch_size": B,
        "model.width": 4,
        "model.discriminator_width": 4,
        "model.noise_size": 8,
        "model.features_size": 128,
    }
    config.update_from_flattened_dict(
        small | {key.replace("__", "."): value for key, value in changes.items()}
    )
    config_lib.validate(config)
    return tasks.build(config, NAMES, np.array([90, 9, 1]), 20, 5.0)


def make(**changes) -> projected.Projected:
    mixing = fastgan.mixing(0, fastgan.channels(TINY), 4)
    return dataclasses.replace(build(**changes), frozen=TINY, projections=mixing)


def batch(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    return {
        "image": rng.integers(0, 256, (B, SIZE, SIZE, 3), dtype=np.uint8),
        "label": rng.integers(0, len(NAMES), B, dtype=np.int32),
        "position": np.arange(step * B, (step + 1) * B, dtype=np.uint32),
    }


@functools.cache
def trained(num_devices: int = 1, steps: int = 10):
    """The last state, and float [steps] of each metric."""
    # Adam without a first moment makes a whole step of the rounding of a gradient near 0; steps are
    # short here, so that this stays rounding.
    task = make(optimizer__learning_rate=1e-5)
    mesh = task.mesh(num_devices, B)
    placement, rows = task.placement(mesh), devices.over_batch(mesh)
    state = jax.jit(task.init, out_shardings=placement)(RNG)
    step = jax.jit(task.step_on(mesh), out_shardings=(placement, placement))
    metrics = []
    for number in range(steps):
        state, found = step(state, jax.device_put(batch(number), rows), RNG)
        metrics.append(found)
    return state, {name: np.array([row[name] for row in metrics]) for name in metrics[0]}


@pytest.mark.parametrize("num_devices", [pytest.param(2, marks=pytest.mark.soak), 4])
def test_any_number_of_devices_has_the_same_losses(num_devices):
    (_, alone), (_, shared) = trained(), trained(num_devices)
    for name in ("d_loss", "g_loss", "d_grad_norm", "logit_generated"):
        np.testing.assert_allclose(shared[name], alone[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_the_frozen_network_stays_as_it_is_and_the_players_do_not():
    task, (state, _) = make(), trained()
    first = jax.jit(task.init)(RNG)
    assert digest(state.features) == digest(first.features)
    for player in ("generator", "discriminator"):
        assert digest(getattr(state.gan, player).params) != digest(
            getattr(first.gan, player).params
        )


def test_classes_come_into_play_within_their_share_of_the_run():
    task = make(model__conditional_from=0.3, model__conditional_to=0.6)
    steps = np.array([0, 6, 9, 12, 20])
    np.testing.assert_allclose(jax.vmap(task.ramp_at)(steps), [0, 0, 0.5, 1, 1], atol=1e-6)
    at_once = make(model__conditional_from=0.0, model__conditional_to=0.0)
    np.testing.assert_allclose(jax.vmap(at_once.ramp_at)(np.array([0, 1])), [0, 1])


def test_images_differ_by_class_once_classes_are_in_play():
    task, (state, _) = make(), trained()
    noise = task.noise(jax.random.split(RNG, 4))
    generators = task.generators(state)
    for ramp, differ in ((0.0, False), (1.0, True)):
        one, other = (task.images_of(generators | {"ramp": ramp}, k, noise) for k in (0, 1))
        assert (np.abs(one - other).max() > 1e-4) == differ


def test_shares_of_classes_lead_from_one_to_the_other():
    task, (state, _) = make(), trained()
    noise = task.noise(jax.random.split(RNG, 3))
    generators = task.generators(state) | {"ramp": 1.0}
    shares = jnp.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])
    between = task.images_between(generators, shares, noise)
    for row, label in ((0, 0), (2, 1)):
        of_class = task.images_of(generators, label, noise)
        np.testing.assert_allclose(between[row], of_class[row], atol=1e-5)
        assert np.abs(between[1] - task.images_of(generators, label, noise)[1]).max() > 1e-5


def test_noise_lies_on_the_sphere():
    noise = make().noise(jax.random.split(RNG, 50))
    np.testing.assert_allclose(jnp.square(noise).sum(axis=1), 8, rtol=1e-5)
    assert np.abs(noise.mean(axis=0)).max() < 0.5


def test_losses_are_hinges_of_the_logits():
    """D's and G's first losses, by hand, of images that no augmentation changes."""
    off = {f"augment__{key}": False for key in ("flip", "rotate90")}
    task = make(**off, **{f"diffaugment__{key}": 0.0 for key in ("color", "translation", "cutout")})
    state = jax.jit(task.init)(RNG)
    given = batch(0)
    new, metrics = jax.jit(task.train_step)(state, given, RNG)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
        jax.random.fold_in(RNG, projected._NOISE), given["position"]
    )
    classes = jax.nn.one_hot(given["label"], 3)

    @jax.jit
    def by_hand(before, after):
        def logits(network, images):
            seen = fastgan.projected(TINY, state.features, images, task.projections, 128)
            return task.discriminator.apply(
                network.variables, seen, classes, 0.0, train=True, mutable=["batch_stats"]
            )[0]

        generated, _ = task.generator.apply(
            before.generator.variables,
            task.noise(keys),
            classes,
            0.0,
            train=True,
            mutable=["batch_stats"],
        )
        real = jnp.asarray(given["image"], jnp.float32) / 127.5 - 1
        on_real = logits(before.discriminator, real)
        on_generated = logits(before.discriminator, generated)
        return on_real, on_generated, logits(after.discriminator, generated)

    on_real, on_generated, judged = map(np.asarray, by_hand(state.gan, new.gan))
    d_loss = np.maximum(0, 1 - on_real).mean() + np.maximum(0, 1 + on_generated).mean()
    np.testing.assert_allclose(metrics["d_loss"], d_loss, rtol=1e-4)
    np.testing.assert_allclose(metrics["g_loss"], -judged.mean(), rtol=1e-3, atol=1e-4)


def test_the_generator_with_the_best_mean_score_is_kept():
    task, (state, _) = make(), trained()
    assert not task.drawn_from(state, 10, 3).scored.any()
    state = task.scored(state, jnp.array([0.5, jnp.nan, 0.3]))
    first = jax.tree.map(np.asarray, state.best)
    later, _ = jax.jit(task.train_step)(state, batch(10), RNG)
    worse = task.scored(later, jnp.array([0.1, jnp.nan, 0.8]))
    assert digest(worse.best) == digest(first)
    drawn = task.drawn_from(worse, 11, 3)
    assert drawn.steps.tolist() == [10, 10, 10]
    assert drawn.scored.all()
    better = task.scored(later, jnp.array([0.6, jnp.nan, 0.1]))
    assert digest(better.best) == digest(task.generators(later))
    np.testing.assert_array_equal(better.best_step, [11] * 3)
    np.testing.assert_allclose(better.best_score, [0.6, np.nan, 0.1])


@pytest.mark.parametrize("folder", [run_lib.CHECKPOINTS, checkpoints.GENERATORS])
def test_generators_of_a_step_are_found_alone_and_in_a_checkpoint(tmp_path, folder):
    task, (state, _) = make(), trained()
    expected = task.generators(state)
    with checkpoints.Checkpoints(tmp_path / folder, keep_all=True) as kept:
        kept.save(10, state if folder == run_lib.CHECKPOINTS else expected, None)
    classes, counts = Classes.of(NAMES), np.array([90, 9, 1])
    run = run_lib.Trained(tmp_path, projected.defaults(), classes, counts, task)
    drawn = run.drawn_from(devices.make_mesh(1), 10)
    assert digest(drawn.generators) == digest(expected)
    assert drawn.steps.tolist() == [10, 10, 10]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data__image_size": 48}, "config.data.image_size: the image size must be 32, 64, 128"),
        ({"model__features_size": 150}, "config.model.features_size is 150; it must be a multiple"),
        ({"model__features_size": 96}, "config.model.features_size is 96"),
        ({"model__conditional_from": 0.7}, "config.model.conditional_from is 0.7, after"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        build(**change)


@pytest.mark.skipif("SKIN_JAX_TEST_WEIGHTS" not in os.environ, reason="no weights")
def test_the_frozen_network_has_the_weights_of_the_file():
    file = Path(os.environ["SKIN_JAX_TEST_WEIGHTS"]) / "tf_efficientnet_lite0.in1k.safetensors"
    task = build(model__weights=str(file))
    state = task.pretrained(jax.eval_shape(task.init, RNG))
    _, expected = pretrained.efficientnet_lite(str(file), "--weights")
    assert digest(state.features["batch_stats"]) == digest(expected["batch_stats"])
    own, given = state.features["params"], expected["params"]
    assert own.keys() == given.keys()
    for name in own.keys() - {pretrained.HEAD}:
        assert digest(own[name]) == digest(given[name])


def test_discriminators_judge_batches_as_in_training_and_by_class():
    task = make()
    state = jax.jit(task.init)(RNG)
    images = batch(0)["image"]
    found = jax.jit(task.realness)(state, images, 1)
    assert found.shape == (B,)
    of_half = jax.jit(task.realness)(state, images[:4], 1)
    assert not np.allclose(found[:4], of_half)  # batch norm, as in training
    np.testing.assert_allclose(found, jax.jit(task.realness)(state, images, 0), atol=1e-6)  # ramp 0
    grown = state.replace(gan=state.gan.replace(step=jnp.int32(10**6)))
    by_class = [jax.jit(task.realness)(grown, images, label) for label in (0, 1)]
    assert np.abs(by_class[0] - by_class[1]).max() > 1e-4
