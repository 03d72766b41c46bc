import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skin_jax import tasks
from skin_jax.base.errors import UserError
from skin_jax.data.classes import HAM10000
from skin_jax.eval import candidates
from skin_jax.tasks.augment import to_uint8
from skin_jax.tasks.declared import sgan
from skin_jax.tasks.task import Task

SIZE = 4
NAMES = HAM10000.names


class Judging:
    """Draws noise and finds the class in the first two values of the stored image."""

    conditional = False

    def noise(self, keys):
        return jax.vmap(lambda key: jax.random.uniform(key, (SIZE * SIZE * 3,), minval=-1.0))(keys)

    def images_of(self, generators, label, noise):
        return generators * noise.reshape(-1, SIZE, SIZE, 3)

    def predict(self, state, images):
        values = images[:, 0, 0].astype(jnp.float32)
        other = (1 - values[:, :1] / 255) / 6
        return jnp.where(
            jnp.arange(7)[None] == (values[:, 1:2] % 7),
            jnp.maximum(values[:, :1] / 255, other),
            other,
        )


class ByClass(Judging):
    """Its images are the noise; its generators, numbers that weaken it."""

    conditional = True
    labels = np.array([1, 3, 4])

    def images_of(self, generators, label, noise):
        place = jnp.searchsorted(jnp.asarray(self.labels), label)
        return generators[place] * noise.reshape(-1, SIZE, SIZE, 3)


GENERATORS = jnp.array([1.0, 0.5, 0.25])


def none_full(name):
    return False


def sampler_of(task, generators, seed=7):
    return candidates.Sampler(task, generators, NAMES, seed, "run")


@pytest.fixture
def sampler():
    return sampler_of(ByClass(), GENERATORS)


def test_judged_images_are_of_their_likeliest_class():
    task, state = Judging(), jnp.float32(0.9)
    drawn = sampler_of(task, state, seed=3)
    predict = candidates.predictor(task, state, "run")
    stream = candidates.judged(drawn, predict, NAMES, step=5, min_confidence=0.5)
    images, later = drawn.batch("df", 0), drawn.batch("mel", 64)
    scores = predict(images)
    found = list(itertools.islice(stream(0, none_full), 80))
    for index, candidate in enumerate(found[:64]):
        if scores[index].max() < 0.5:
            assert candidate is None
            continue
        assert candidate.label == NAMES[scores[index].argmax()]
        assert candidate.confidence == float(scores[index].max())
        assert (candidate.index, candidate.step) == (index, 5)
        np.testing.assert_array_equal(candidate.pixels, images[index])
    assert {candidate is None for candidate in found} == {True, False}
    everything = candidates.judged(drawn, predict, NAMES, step=5, min_confidence=0.0)
    at_70 = next(everything(70, none_full))  # in the middle of a batch
    assert at_70.index == 70
    np.testing.assert_array_equal(at_70.pixels, later[6])


def test_an_image_of_no_class_is_a_function_of_seed_and_index_alone():
    config = sgan.defaults()
    config.update_from_flattened_dict(
        {"data.image_size": 32, "model.width": 4, "num_steps": 1, "batch_size": 8}
    )
    task = tasks.build(config, NAMES, np.full(7, 10), 1, 1.0)
    state = jax.jit(task.init)(jax.random.key(0))
    generators = task.generators(state)
    images = sampler_of(task, generators).batch("mel", 128)
    for i in (0, 5, 63):
        key = jax.random.fold_in(jax.random.key(7), 128 + i)
        alone = to_uint8(task.images_of(generators, 0, task.noise(key[None])))[0]
        # One level: the arithmetic of a batch of one may differ in the last bit.
        np.testing.assert_allclose(images[i].astype(int), np.asarray(alone, int), atol=1)
    assert images.dtype == np.uint8
    assert images.shape == (64, 32, 32, 3)
    assert len({image.tobytes() for image in images}) == 64
    np.testing.assert_array_equal(images, sampler_of(task, generators).batch("df", 128))
    probabilities = candidates.predictor(task, state, "run")(images)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-5)


def test_an_image_of_a_class_is_a_function_of_seed_class_and_index_alone(sampler):
    drawn = {name: sampler.batch(name, 64) for name in ("bcc", "df", "mel")}
    for name, scale in zip(drawn, GENERATORS, strict=True):
        assert drawn[name].shape == (64, SIZE, SIZE, 3)
        key = jax.random.fold_in(jax.random.key(7), NAMES.index(name))
        for i in (0, 63):
            noise = ByClass().noise(jax.random.fold_in(key, 64 + i)[None])
            expected = to_uint8(scale * noise.reshape(SIZE, SIZE, 3))
            np.testing.assert_array_equal(drawn[name][i], expected)
    fewer = ByClass()
    fewer.labels = np.array([4])
    alone = sampler_of(fewer, GENERATORS[2:])
    np.testing.assert_array_equal(alone.batch("mel", 64), drawn["mel"])
    other = sampler_of(ByClass(), GENERATORS, seed=8)
    assert (other.batch("mel", 64) != drawn["mel"]).any()


@pytest.mark.parametrize(
    ("ability", "words"),
    [("images_of", "does not generate images"), ("predict", "does not classify images")],
)
def test_a_task_without_an_ability_is_named(ability, words):
    task = Task()
    with pytest.raises(UserError, match=f"runs/x: a run of its task, Task, {words}"):
        (
            candidates.predictor(task, None, "runs/x")
            if ability == "predict"
            else candidates.Sampler(task, None, NAMES, 0, "runs/x")
        )


def test_classes_come_one_after_another_from_any_position(sampler, monkeypatch):
    wanted, steps = {"bcc": 70, "mel": 3}, {"bcc": 10, "mel": 20}
    drawn = []
    batch, batches = sampler.batch, sampler.batches
    monkeypatch.setattr(sampler, "batches", lambda jobs: drawn.extend(jobs) or batches(jobs))
    stream = candidates.by_class(sampler, steps, wanted)
    whole = list(stream(0, none_full))
    assert drawn == [("bcc", 0), ("bcc", 64), ("mel", 0)]
    assert [(c.label, c.index) for c in whole] == [
        *(("bcc", i) for i in range(70)),
        *(("mel", i) for i in range(3)),
    ]
    assert {(c.label, c.confidence, c.step) for c in whole} == {("bcc", 1.0, 10), ("mel", 1.0, 20)}
    np.testing.assert_array_equal(whole[69].pixels, batch("bcc", 64)[5])
    for position in (1, 63, 64, 66, 70, 72, 73):
        drawn.clear()
        rest = list(stream(position, none_full))
        assert [(c.label, c.index) for c in rest] == [(c.label, c.index) for c in whole[position:]]
        for ours, theirs in zip(rest, whole[position:], strict=True):
            np.testing.assert_array_equal(ours.pixels, theirs.pixels)
    assert drawn == []  # at the end


def test_what_is_passed_over_and_what_is_full_is_not_drawn_for_others(sampler, monkeypatch):
    drawn, taken = [], []
    batches = sampler.batches
    monkeypatch.setattr(sampler, "batches", lambda jobs: drawn.extend(jobs) or batches(jobs))

    def odd(name, images):
        assert images.shape == (64, SIZE, SIZE, 3)
        return np.where(np.arange(64) % 2, 0.75, np.nan)

    def full(name):
        return len([c for c in taken if c.label == name]) == 40

    steps, tries = {"bcc": 10, "mel": 20}, {"bcc": 300, "mel": 70}
    stream = candidates.by_class(sampler, steps, tries, odd)
    positions = 0
    for candidate in stream(0, full):
        positions += 1
        if candidate is not None:
            taken.append(candidate)
    assert positions == 370
    assert drawn == [("bcc", 0), ("bcc", 64), ("mel", 0), ("mel", 64)]
    assert [c.index for c in taken] == [*range(1, 80, 2), *range(1, 70, 2)]
    assert {c.confidence for c in taken} == {0.75}


def test_truncation_scales_the_noise():
    halved = candidates.Sampler(ByClass(), GENERATORS, NAMES, 7, "run", truncation=0.5)
    whole = sampler_of(ByClass(), GENERATORS / 2)
    np.testing.assert_array_equal(halved.batch("bcc", 0), whole.batch("bcc", 0))
    assert halved.walks("bcc").std() < 0.6 * sampler_of(ByClass(), GENERATORS).walks("bcc").std()


class Between(Judging):
    """Its images are the noise times the share of class 4 in the shares of classes."""

    conditional = True

    def images_of(self, generators, label, noise):
        return self.images_between(generators, jax.nn.one_hot(jnp.full(64, label), 7), noise)

    def images_between(self, generators, classes, noise):
        return (classes[:, 4:5] * noise).reshape(-1, SIZE, SIZE, 3)


def test_walks_between_classes_keep_the_noise(sampler):
    assert sampler.class_walks("mel", ["bcc"]) is None
    able = sampler_of(Between(), None)
    assert able.class_walks("mel", []) is None
    walks = able.class_walks("mel", ["bcc", "nv"]).astype(int).reshape(2, 8, -1)
    np.testing.assert_array_equal(walks[0], walks[1])
    np.testing.assert_array_equal(walks[0, 0], able.batch("mel", 0)[0].ravel())
    assert set(np.unique(walks[:, -1])) <= {127, 128}
    half = 127.5 + (walks[0, 0] - 127.5) * 3 / 7
    np.testing.assert_allclose(walks[0, 4], half, atol=1)


def test_walks_are_straight_lines_between_the_first_images(sampler):
    walks = sampler.walks("bcc").reshape(8, 8, -1).astype(float)
    images = sampler.batch("bcc", 0).reshape(64, -1)
    np.testing.assert_array_equal(walks[:, 0], images[0:16:2])
    np.testing.assert_array_equal(walks[:, -1], images[1:16:2])
    share = np.linspace(0, 1, 8)[:, None]
    line = (1 - share) * walks[:, :1] + share * walks[:, -1:]
    np.testing.assert_allclose(walks, line, atol=1.01)  # each is rounded
