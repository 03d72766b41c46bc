import importlib.util

import jax
import numpy as np
import pytest
from PIL import Image

from skin_jax.base import devices
from skin_jax.base.errors import UserError
from skin_jax.data import pipeline as pipelines
from skin_jax.data import prepared, store
from skin_jax.data.classes import HAM10000
from skin_jax.data.examples import Joined
from skin_jax.data.order import Order

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (23, 4, 4, 3), dtype=np.uint8)
LABELS = np.array([0] * 12 + [2] * 7 + [5] * 3 + [6], np.int32)
needs_tf = pytest.mark.skipif(
    not importlib.util.find_spec("tensorflow"), reason="TensorFlow is not installed"
)
BOTH = [pytest.param("tf", marks=needs_tf), "device"]


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    """IMAGES as a store of several files."""
    folder = tmp_path_factory.mktemp("images")
    for number, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        path = folder / "data" / HAM10000.names[label] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepared, "_SHARD_BYTES", 5 * IMAGES[0].nbytes)
        examples = store.prepare(
            folder / "data", image_size=4, cache_dir=folder / "cache", progress=False
        )
    return examples.images


def make(name: str, num_devices: int = 1, images=IMAGES) -> pipelines.Pipeline:
    return pipelines.make(name, images, LABELS, devices.make_mesh(num_devices))


def order() -> Order:
    return Order(np.arange(len(IMAGES)), LABELS, seed=0, sampling="natural")


def batches(
    name: str,
    *,
    devices: int = 1,
    first: int = 0,
    last: int = 6,
    k: int = 1,
    size: int = 8,
    images=IMAGES,
):
    pipeline = make(name, devices, images)
    feeds = pipeline.train_feeds(order(), size, first, last, k)
    return [jax.tree.map(np.asarray, pipeline.gather(pipeline.resident, feed)) for feed in feeds]


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
@pytest.mark.parametrize("k", [1, 3])
def test_images_on_disk_give_the_batches_of_those_in_memory(on_disk, name, k):
    joined = Joined(on_disk, IMAGES[:0])
    for images in (on_disk, joined, Joined(IMAGES[:9], _Part(on_disk, 9))):
        found = batches(name, k=k, images=images)
        for one, other in zip(batches("device", k=k), found, strict=True):
            jax.tree.map(np.testing.assert_array_equal, one, other)


class _Part:
    """Images from a place on."""

    def __init__(self, images, first: int):
        self._images, self._first = images, first
        self.shape = (len(images) - first, *images.shape[1:])
        self.nbytes = int(np.prod(self.shape))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return self._images[indices + self._first]


def test_joined_images_are_those_of_both(on_disk):
    joined = Joined(on_disk, IMAGES[::-1])
    both = np.concatenate([IMAGES, IMAGES[::-1]])
    assert len(joined) == 46
    assert (joined.shape, joined.nbytes) == (both.shape, both.nbytes)
    for indices in (np.arange(46), np.array([[45, 0, 22], [23, 1, 44]]), np.array([], int)):
        np.testing.assert_array_equal(joined[indices], both[indices])


@needs_tf
def test_a_process_reads_its_own_rows_only(on_disk, monkeypatch):
    read = []

    class Recorded(_Part):
        def __getitem__(self, indices):
            read.append(indices)
            return super().__getitem__(indices)

    monkeypatch.setattr(devices, "local_rows", lambda mesh, size: np.arange(2, 4))
    monkeypatch.setattr(devices, "to_global", lambda batch, placement: batch)
    found = batches("tf", images=Recorded(on_disk, 0))
    own = order()(np.arange(6 * 8)).reshape(6, 8)[:, 2:4]
    assert sorted(map(tuple, read)) == sorted(map(tuple, own))
    for step, batch in enumerate(found):
        np.testing.assert_array_equal(batch["image"], IMAGES[own[step]])
        np.testing.assert_array_equal(batch["label"], LABELS[own[step]])


@needs_tf
def test_damage_that_the_stream_meets_ends_in_its_sentence(on_disk, capfd):
    class Damaged(_Part):
        def __getitem__(self, indices):
            if 5 in indices:
                raise UserError("the prepared images are damaged")
            return super().__getitem__(indices)

    with pytest.raises(UserError, match="the prepared images are damaged"):
        batches("tf", images=Damaged(on_disk, 0))
    assert "Traceback" not in capfd.readouterr().err


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
