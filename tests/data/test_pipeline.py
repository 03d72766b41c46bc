import importlib.util

import jax
import numpy as np
import pytest

from skin_jax.base import devices
from skin_jax.base.errors import UserError
from skin_jax.data import pipeline as pipelines

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (23, 4, 4, 3), dtype=np.uint8)
LABELS = np.array([0] * 12 + [2] * 7 + [5] * 3 + [6], np.int32)
needs_tf = pytest.mark.skipif(
    not importlib.util.find_spec("tensorflow"), reason="TensorFlow is not installed"
)
BOTH = [pytest.param("tf", marks=needs_tf), "device"]


def make(name: str, num_devices: int = 1) -> pipelines.Pipeline:
    return pipelines.make(name, IMAGES, LABELS, devices.make_mesh(num_devices))


def order(sampling: str = "natural", seed: int = 0, indices=None) -> pipelines.Order:
    indices = np.arange(len(IMAGES)) if indices is None else indices
    return pipelines.Order(indices, LABELS[indices], sampling, seed)


def batches(
    name: str, *, devices: int = 1, first: int = 0, last: int = 6, k: int = 1, size: int = 8
):
    pipeline = make(name, devices)
    feeds = pipeline.train_feeds(order(), size, first, last, k)
    return [jax.tree.map(np.asarray, pipeline.gather(pipeline.resident, feed)) for feed in feeds]


def test_natural_order_is_permutations_end_to_end():
    stream = order()(np.arange(3 * 23))
    for epoch in range(3):
        np.testing.assert_array_equal(np.sort(stream[epoch * 23 : (epoch + 1) * 23]), np.arange(23))
    assert not np.array_equal(stream[:23], stream[23:46])


def test_order_is_a_pure_function_of_seed_and_position():
    whole = order()(np.arange(100))
    np.testing.assert_array_equal(order()(np.arange(60, 100)), whole[60:])
    backwards = order()
    backwards(np.arange(90, 100))
    np.testing.assert_array_equal(backwards(np.arange(100)), whole)
    assert not np.array_equal(order(seed=1)(np.arange(100)), whole)


def test_balanced_order_holds_each_class_once_every_cycle_and_uses_every_image():
    stream = order("balanced")(np.arange(4 * 12 * 2))
    cycles = np.sort(LABELS[stream].reshape(-1, 4), axis=1)
    np.testing.assert_array_equal(cycles, np.tile([0, 2, 5, 6], (24, 1)))
    counts = np.bincount(stream, minlength=23)
    np.testing.assert_array_equal(counts[LABELS == 0], 2)
    np.testing.assert_array_equal(counts[LABELS == 5], 8)
    assert len({tuple(LABELS[stream[i : i + 4]]) for i in range(0, 96, 4)}) > 1


def test_order_refuses_nothing():
    with pytest.raises(UserError, match="training split is empty"):
        order(indices=np.array([], int))


@pytest.mark.parametrize("name", BOTH)
def test_examples_are_those_of_the_order(name):
    expected = order()(np.arange(6 * 8)).reshape(6, 8)
    found = batches(name)
    assert len(found) == 6
    for step, batch in enumerate(found):
        np.testing.assert_array_equal(batch["image"], IMAGES[expected[step]])
        np.testing.assert_array_equal(batch["label"], LABELS[expected[step]])
        np.testing.assert_array_equal(batch["position"], np.arange(step * 8, step * 8 + 8))
        np.testing.assert_array_equal(batch["mask"], np.ones(8))
        assert batch["image"].dtype == np.uint8
        assert batch["label"].dtype == np.int32
        assert batch["position"].dtype == np.uint32


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("devices", [2, 4])
def test_the_number_of_devices_changes_no_pixel(name, devices):
    for one, several in zip(batches("device"), batches(name, devices=devices), strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, several)


@pytest.mark.parametrize("name", BOTH)
def test_starting_in_the_middle_gives_the_same_batches(name):
    for one, resumed in zip(batches(name)[4:], batches(name, first=4), strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, resumed)


@pytest.mark.parametrize("name", BOTH)
def test_several_steps_a_dispatch_stack_the_same_batches(name):
    stacked = batches(name, k=3, devices=2)
    assert len(stacked) == 2
    for step, one in enumerate(batches(name)):
        found = jax.tree.map(lambda x, i=step: x[i % 3], stacked[step // 3])
        jax.tree.map(np.testing.assert_array_equal, one, found)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("size", [1, 5, 22, 23, 24, 64])
def test_evaluation_counts_every_example_once(name, size):
    pipeline = make(name)
    chosen = np.array([3, 1, 22, 0, 19, 7, 8, 9, 10, 2, 21])
    seen = []
    for feed in pipeline.eval_feeds(chosen, size):
        batch = jax.tree.map(np.asarray, pipeline.gather(pipeline.resident, feed))
        assert len(batch["image"]) == size
        valid = batch["mask"] > 0
        np.testing.assert_array_equal(
            batch["image"][valid], IMAGES[chosen[batch["position"][valid]]]
        )
        seen += batch["position"][valid].tolist()
    assert seen == list(range(len(chosen)))


@pytest.mark.parametrize("name", BOTH)
def test_evaluation_of_nothing_is_nothing(name):
    assert list(make(name).eval_feeds(np.array([], int), 4)) == []


def test_auto_takes_the_device_for_small_data():
    assert type(make("auto")) is pipelines.DevicePipeline


@needs_tf
def test_auto_streams_what_does_not_fit(monkeypatch):
    monkeypatch.setattr(pipelines, "_fits", lambda num_bytes: False)
    assert type(make("auto")) is pipelines.TfPipeline


def test_fits_counts_the_copy_of_every_device_that_shares_the_memory(monkeypatch):
    monkeypatch.setattr(pipelines, "_available_memory", lambda: 4000)
    devices = jax.local_device_count()
    assert pipelines._fits(1000 // devices - 1)
    assert not pipelines._fits(1000 // devices)


def test_available_memory_is_that_of_this_machine():
    assert 2**27 < pipelines._available_memory() < 2**50


def test_auto_without_tensorflow_takes_the_device(monkeypatch):
    monkeypatch.setattr(pipelines.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(pipelines, "_fits", lambda num_bytes: False)
    assert type(make("auto")) is pipelines.DevicePipeline


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("devices", [3, 4])
def test_evaluation_takes_any_batch_size_on_any_number_of_devices(name, devices):
    pipeline = make(name, devices)
    chosen = np.arange(11)
    feeds = [jax.tree.map(np.asarray, feed) for feed in pipeline.eval_feeds(chosen, 5)]
    positions = np.concatenate([feed["position"][feed["mask"] > 0] for feed in feeds])
    np.testing.assert_array_equal(positions, chosen)


def class_order(classes, per_class: int = 2, seed: int = 0) -> pipelines.ClassOrder:
    indices = np.arange(len(IMAGES))
    return pipelines.ClassOrder(indices, LABELS, np.array(classes), per_class, seed)


def test_a_batch_of_a_stack_holds_as_many_of_each_class_side_by_side():
    stream = class_order([0, 2, 6])(np.arange(6 * 6)).reshape(6, 6)
    np.testing.assert_array_equal(LABELS[stream], np.tile([0, 0, 2, 2, 6, 6], (6, 1)))
    np.testing.assert_array_equal(np.sort(stream[:, :2].reshape(-1)), np.arange(12))  # one pass
    assert len(set(stream[:3, 2:4].reshape(-1))) == 6


def test_a_class_of_a_stack_goes_through_its_examples_the_same_alone():
    together = class_order([0, 2, 5])(np.arange(60)).reshape(10, 3, 2)
    for place, label in enumerate((0, 2, 5)):
        alone = class_order([label])(np.arange(20)).reshape(10, 2)
        np.testing.assert_array_equal(together[:, place], alone)
    assert not np.array_equal(
        together, class_order([0, 2, 5], seed=1)(np.arange(60)).reshape(10, 3, 2)
    )
