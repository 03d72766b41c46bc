"""Generated images as training data: who sees them, what is refused, what a resumed run needs."""

import importlib.util
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from skin_jax import api
from skin_jax.base import devices
from skin_jax.base.errors import UserError
from skin_jax.data import demo, splits
from skin_jax.data import generated as generated_lib
from skin_jax.data.classes import HAM10000
from skin_jax.eval import runs, tables
from skin_jax.tasks import state as state_lib
from skin_jax.tasks.declared import classifier
from skin_jax.training import checkpoints as checkpoint_lib
from skin_jax.training import loop
from skin_jax.training.run import fitted_on, reopen, start

needs_tf = pytest.mark.skipif(
    not importlib.util.find_spec("tensorflow"), reason="TensorFlow is not installed"
)

REAL = demo.MIN_IMAGES
PER_CLASS = 3
FOREIGN = "0" * 64


def tiny(**changes):
    config = classifier.defaults()
    small = {
        "num_steps": 4,
        "batch_size": 8,
        "eval_batch_size": 16,
        "eval_every_steps": 4,
        "data.demo_images": REAL,
        "data.image_size": 32,
        "data.pipeline": "device",
        "model.name": "cnn",
        "model.width_multiplier": 0.125,
        "optimizer.warmup_steps": 1,
        "sharding.num_devices": 1,
        "log.every_steps": 1,
        "log.tensorboard": False,
    }
    config.update_from_flattened_dict(
        small | {key.replace("__", "."): value for key, value in changes.items()}
    )
    return config


@pytest.fixture(scope="session")
def own_split():
    """The digest of the training split that every run here has."""
    data = tiny().data
    records = demo.generate(REAL, data.image_size, data.split_seed).records
    assignment = splits.draw(
        records, split="lesion", fractions=data.split_fractions, split_seed=0, fold=None
    )
    return generated_lib.train_split_digest(
        splits.members_of(records, assignment, "train", HAM10000)
    )


def fill(folder, train_split, foreign=0):
    """Noise for pictures, `PER_CLASS` a class; the first ones have another generator."""
    rng = np.random.default_rng(0)
    rows = []
    for name in HAM10000.names:
        (folder / name).mkdir(parents=True)
        for index in range(PER_CLASS):
            image = f"{name}/{name}_0_{index}.png"
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / image)
            whose = FOREIGN if len(rows) < foreign else train_split
            rows.append(generated_lib.Generated(image, name, index, 0.5, 0, 1, "gan-0", whose))
    generated_lib.write(folder, rows)
    return str(folder)


@pytest.fixture
def folder(tmp_path, own_split):
    return fill(tmp_path / "generated", own_split)


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def seen(experiment, feeds):
    """Images and labels of all feeds, without padding."""
    images, labels = [], []
    for feed in feeds:
        batch = experiment.pipeline.gather(experiment.pipeline.resident, feed)
        rows = np.asarray(batch["mask"]) == 1
        images.append(np.asarray(batch["image"])[rows])
        labels.append(np.asarray(batch["label"])[rows])
    return np.concatenate(images), np.concatenate(labels)


def as_bytes(images):
    return {image.tobytes() for image in images}


def train_to_the_end(config, workdir):
    workdir.mkdir(exist_ok=True)
    experiment = start(config, workdir)
    checkpoints = checkpoint_lib.Checkpoints(workdir / "checkpoints")
    with checkpoint_lib.Preemption() as preemption:
        state = loop.train(experiment, checkpoints, workdir, preemption)
    checkpoints.close()
    return state_lib.digest(state)


def test_generated_images_are_trained_with_and_never_evaluated_on(folder, workdir):
    experiment = start(tiny(data__synthetic=folder, num_steps=40), workdir)
    generated = as_bytes(experiment.synthetic.images)
    assert len(generated) == 7 * PER_CLASS
    assert not generated & as_bytes(experiment.examples.images)
    assert len(experiment.assignment) == len(experiment.examples.images) == REAL
    for split in splits.SPLITS:
        indices = experiment.indices(split)
        assert (indices < REAL).all()
        images, labels = seen(experiment, experiment.pipeline.eval_feeds(indices, 16))
        np.testing.assert_array_equal(images, experiment.examples.images[indices])
        np.testing.assert_array_equal(labels, experiment.examples.labels[indices])
    assert (workdir / "splits.csv").read_text().count("\n") == 1 + REAL
    images, labels = seen(experiment, loop.feeds(experiment, 0))
    real = experiment.examples.images[experiment.indices("train")]
    assert as_bytes(images) == generated | as_bytes(real)
    held_out = experiment.examples.images[experiment.assignment != "train"]
    assert not as_bytes(images) & as_bytes(held_out)
    known = dict(
        zip(
            (image.tobytes() for image in experiment.synthetic.images),
            experiment.synthetic.labels,
            strict=True,
        )
    )
    for image, label in zip(images, labels, strict=True):
        assert known.get(image.tobytes(), label) == label


def test_the_labels_and_pixels_are_those_of_the_files(folder, workdir):
    generated = start(tiny(data__synthetic=folder), workdir).synthetic
    for record, image in zip(generated.records, generated.images, strict=True):
        assert HAM10000.names[record.label] == record.image_id.split("/")[0]
        np.testing.assert_array_equal(image, np.asarray(Image.open(record.path)))


def test_a_run_is_as_long_with_generated_or_repeated_images_as_without(folder, tmp_path):
    found = []
    for place, changes in enumerate(({}, {"data__synthetic": folder}, {"data__oversample_to": 20})):
        (tmp_path / str(place)).mkdir()
        config = tiny(num_steps=None, num_epochs=3, **changes)
        experiment = start(config, tmp_path / str(place))
        found.append((experiment.num_steps, experiment.steps_per_epoch))
        assert experiment.steps_per_epoch == len(experiment.indices("train")) / 8
    assert len(set(found)) == 1


def test_class_weights_are_those_of_the_training_stream(folder, tmp_path):
    for place, changes in enumerate(({"data__synthetic": folder}, {"data__oversample_to": 20})):
        (tmp_path / str(place)).mkdir()
        config = tiny(loss__class_weights="balanced", **changes)
        experiment = start(config, tmp_path / str(place))
        counts = experiment.class_counts("train")
        counts = counts + PER_CLASS if place == 0 else np.maximum(counts, 20)
        np.testing.assert_array_equal(np.bincount(experiment.training_labels), counts)
        expected = counts.sum() / (7 * counts)
        np.testing.assert_allclose(experiment.task.class_weights, expected, rtol=1e-6)


def test_oversampling_repeats_whole_passes_and_then_the_first_ones(workdir):
    experiment = start(tiny(data__oversample_to=20), workdir)
    train_split = experiment.indices("train")
    labels = experiment.examples.labels
    for c in range(7):
        real = train_split[labels[train_split] == c]
        stream = experiment.training_indices[experiment.training_labels == c]
        expected = [real[i % len(real)] for i in range(max(20, len(real)))]
        np.testing.assert_array_equal(stream, expected)


@pytest.mark.parametrize(("ratio", "expected"), [(0.0, 0), (0.1, None), (100.0, 7 * PER_CLASS)])
def test_the_ratio_is_by_real_training_images_of_the_class(folder, workdir, ratio, expected):
    experiment = start(tiny(data__synthetic=folder, data__synthetic_ratio=ratio), workdir)
    most = np.floor(ratio * experiment.class_counts("train") + 0.5).astype(int)
    counts = np.bincount(experiment.synthetic.labels, minlength=7)
    np.testing.assert_array_equal(counts, np.minimum(most, PER_CLASS))
    assert expected in (None, counts.sum())


def test_a_ratio_of_0_trains_the_same_bits_as_no_folder(folder, tmp_path):
    without = train_to_the_end(tiny(), tmp_path / "without")
    nothing = tiny(data__synthetic=folder, data__synthetic_ratio=0.0)
    assert train_to_the_end(nothing, tmp_path / "nothing") == without
    everything = tiny(data__synthetic=folder)
    assert train_to_the_end(everything, tmp_path / "everything") != without


@pytest.mark.parametrize("foreign", [1, 7 * PER_CLASS])
def test_images_of_a_generator_of_another_split_are_refused(tmp_path, own_split, workdir, foreign):
    folder = fill(tmp_path / "generated", own_split, foreign)
    with pytest.raises(UserError) as error:
        start(tiny(data__synthetic=folder), workdir)
    message = str(error.value)
    for words in (
        f"{foreign} of the 21 images in {folder} are of a generator that was trained on another",
        "lesions of its validation and test splits",
        "--config.data.split, split_fractions, split_seed and fold",
        "--config.data.synthetic_allow_foreign=True",
    ):
        assert words in message
    assert len(message.splitlines()) == 1
    assert list(workdir.iterdir()) == []


def test_another_split_of_the_run_makes_the_images_foreign(folder, workdir):
    with pytest.raises(UserError, match="21 of the 21 images"):
        start(tiny(data__synthetic=folder, data__split_seed=1), workdir)


def test_foreign_images_are_taken_with_a_warning_where_that_is_asked_for(
    tmp_path, own_split, workdir, capsys
):
    folder = fill(tmp_path / "generated", own_split, foreign=2)
    config = tiny(data__synthetic=folder, data__synthetic_allow_foreign=True)
    assert len(start(config, workdir).synthetic.images) == 7 * PER_CLASS
    error = capsys.readouterr().err
    assert "warning: 2 of the 21 images" in error
    assert "may be too high" in error
    # What such a run generates is foreign to every run, also to one of the same split.
    assert fitted_on(workdir) != own_split


def test_a_run_is_fitted_on_its_own_training_split(folder, workdir, own_split):
    start(tiny(data__synthetic=folder), workdir)
    assert fitted_on(workdir) == own_split


def test_a_folder_that_fits_gives_no_warning(folder, workdir, capsys):
    start(tiny(data__synthetic=folder), workdir)
    assert capsys.readouterr().err == ""


def test_a_truncated_image_is_named_and_nothing_is_written(folder, tmp_path, workdir):
    image = tmp_path / "generated" / "df" / "df_0_1.png"
    image.write_bytes(image.read_bytes()[:200])
    with pytest.raises(UserError, match=r"cannot be read \(1 problem\):\n  - df/df_0_1.png: "):
        start(tiny(data__synthetic=folder), workdir)
    assert list(workdir.iterdir()) == []


def test_a_missing_folder_is_said_before_the_images_are_prepared(tmp_path, workdir, monkeypatch):
    monkeypatch.setattr(demo, "generate", lambda *args: pytest.fail("prepared"))
    with pytest.raises(UserError, match="does not exist; give a folder"):
        start(tiny(data__synthetic=str(tmp_path / "nowhere")), workdir)
    assert list(workdir.iterdir()) == []


def test_oversampling_that_repeats_nothing_is_refused(workdir):
    with pytest.raises(UserError, match=r"config\.data\.oversample_to is 1, but every class"):
        start(tiny(data__oversample_to=1), workdir)
    assert list(workdir.iterdir()) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"data__sampling": "balanced"},
        {"data__pipeline": "auto"},
        pytest.param({"data__pipeline": "tf"}, marks=needs_tf),
    ],
)
def test_generated_images_go_with_balanced_sampling_and_any_pipeline(folder, workdir, changes):
    experiment = start(tiny(data__synthetic=folder, num_steps=20, **changes), workdir)
    images, labels = seen(experiment, loop.feeds(experiment, 0))
    assert as_bytes(images) & as_bytes(experiment.synthetic.images)
    if changes.get("data__sampling"):
        counts = np.bincount(labels)
        assert counts.max() - counts.min() <= 1


def test_a_resumed_run_needs_the_same_generated_images_wherever_they_lie(folder, tmp_path, workdir):
    config = tiny(data__synthetic=folder)
    start(config, workdir)
    digest = (workdir / "synthetic.digest").read_text()
    moved = tmp_path / "moved"
    shutil.move(folder, moved)
    again = start(tiny(data__synthetic=str(moved)), workdir)
    assert again.synthetic.digest + "\n" == digest
    with pytest.raises(UserError, match=r"is trained with generated images; give .*\.synthetic"):
        start(tiny(), workdir)
    with pytest.raises(UserError, match=r"config\.data\.synthetic_ratio: None there, 0\.5 now"):
        start(tiny(data__synthetic=str(moved), data__synthetic_ratio=0.5), workdir)
    image = moved / "mel" / "mel_0_0.png"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(image)
    with pytest.raises(UserError, match=r"generated images are not those that .* digest differs"):
        start(tiny(data__synthetic=str(moved)), workdir)
    (workdir / "synthetic.digest").unlink()
    with pytest.raises(UserError, match=r"synthetic\.digest cannot be read .* restore it"):
        start(tiny(data__synthetic=str(moved)), workdir)


def test_a_run_without_generated_images_cannot_be_given_some_later(folder, workdir):
    start(tiny(), workdir)
    assert not (workdir / "synthetic.digest").exists()
    with pytest.raises(UserError, match="is trained without generated images; leave out"):
        start(tiny(data__synthetic=folder), workdir)


def test_a_run_of_before_generated_images_is_resumed_and_reopened(workdir):
    start(tiny(), workdir)
    path = workdir / "config.json"
    content = json.loads(path.read_text())
    for key in ("oversample_to", "synthetic", "synthetic_ratio", "synthetic_allow_foreign"):
        del content["data"][key]
    del content["identity"]
    path.write_text(json.dumps(content))
    reopen(workdir)
    start(tiny(), workdir)


def test_processes_compare_the_generated_images_too(folder, workdir, monkeypatch):
    compared = []
    monkeypatch.setattr(devices, "same_everywhere", lambda text: bool(compared.append(text)))
    with pytest.raises(UserError, match=r"--config\.data\.dir and --config\.data\.synthetic"):
        start(tiny(data__synthetic=folder), workdir)
    assert len(compared) == 1
    assert len(compared[0].split()) == 2
    assert list(workdir.iterdir()) == []


def test_a_finished_run_tells_of_its_generated_images_and_is_evaluated_without_them(
    folder, tmp_path
):
    workdir = tmp_path / "run"
    # A run is evaluated again on all devices; on another number of them rounding may differ.
    config = tiny(
        data__synthetic=folder, loss__class_weights="balanced", sharding__num_devices=None
    )
    api.train(config, workdir)
    first = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[0])
    assert first["synthetic_examples"] == 7 * PER_CLASS
    assert first["real_examples"] == (workdir / "splits.csv").read_text().count(",train")
    page = (workdir / "report.html").read_text()
    assert "generated, for training" in page
    assert str(tmp_path) not in page
    written = (workdir / "eval" / "test" / "predictions.csv").read_text()
    shutil.rmtree(folder)
    experiment = reopen(workdir)
    assert experiment.synthetic is None
    checkpoints = checkpoint_lib.Checkpoints(workdir / "checkpoints", read_only=True)
    again = runs.evaluate_split(experiment, checkpoints, "test")
    checkpoints.close()
    tables.write_predictions(
        tmp_path / "again.csv", again.image_ids, again.probabilities, again.classes
    )
    assert (tmp_path / "again.csv").read_text() == written
    assert written.count("\n") == 1 + np.sum(experiment.assignment == "test")


def test_the_length_of_a_run_is_known_before_its_warm_up_is_checked(workdir):
    config = tiny(num_steps=None, num_epochs=2, optimizer__warmup_steps=5)
    experiment = start(config, workdir)
    assert experiment.num_steps > 5
    (workdir / "config.json").unlink()
    with pytest.raises(UserError, match=r"optimizer\.warmup_steps is 500, but the run has"):
        start(tiny(num_steps=None, num_epochs=2, optimizer__warmup_steps=500), workdir)


def test_the_network_explains_and_describes_its_images(workdir):
    experiment = start(tiny(), workdir)
    task = experiment.task
    state = jax.jit(task.init)(jax.random.key(0))
    images = experiment.examples.images[:2]
    assert jax.jit(task.explain)(state, images, np.zeros(2, np.int32)).shape == (2, 4, 4)
    assert task.features(state, images).shape == (2, 24)
