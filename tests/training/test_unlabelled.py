"""Training images without a label: who sees them, and that nobody sees a hidden label."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from skin_jax import api
from skin_jax.base.errors import UserError
from skin_jax.data import demo, splits
from skin_jax.data.classes import UNLABELLED
from skin_jax.eval import audit
from skin_jax.eval.linear import logistic_regression
from skin_jax.tasks.declared import classifier, dcgan, sgan
from skin_jax.training import loop
from skin_jax.training import run as run_lib
from skin_jax.training.run import reopen, start, trained

SHARED = {
    "num_steps": 4,
    "batch_size": 8,
    "eval_batch_size": 16,
    "eval_every_steps": 2,
    "data.demo_images": 2 * demo.MIN_IMAGES,
    "data.image_size": 32,
    "data.label_fraction": 0.4,
    "data.pipeline": "device",
    "sharding.num_devices": 1,
    "log.every_steps": 1,
    "log.tensorboard": False,
}
SGAN = {"model.width": 4, "model.noise_size": 8}
CLASSIFIER = {
    "model.name": "cnn",
    "model.width_multiplier": 0.125,
    "optimizer.warmup_steps": 0,
    "loss.self_training": 1.0,
    "loss.pseudo_label_threshold": 0.1,
    "loss.pseudo_label_from_epoch": 0,
}


def tiny(task=sgan, **changes):
    config = task.defaults()
    own = {sgan: SGAN, classifier: CLASSIFIER, dcgan: SGAN}[task]
    given = {key.replace("__", "."): value for key, value in changes.items()}
    config.update_from_flattened_dict(SHARED | own | given)
    return config


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def digest(workdir):
    steps = sorted((workdir / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    return json.loads((steps[-1] / "digest" / "metadata").read_text())["blake2b"]


def results(workdir):
    """Everything that a run says about its images; when and how fast differ from run to run."""
    names = ["splits.csv", "classes.json", "figures/class_histogram.png"]
    names += ["figures/samples_per_class.png", "eval/test/metrics.json", "eval/test/report.md"]
    found = {name: (workdir / name).read_bytes() for name in names}
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    found["history"] = [row | {"images_per_second": 0} for row in rows]
    page = re.sub(r"base64,[^\"]*", "", (workdir / "report.html").read_text())
    made = r"<p>[\d-]+, (skin_jax [^<]*\. Training steps took) \w+\.</p>"
    found["page"], count = re.subn(made, r"<p>\1</p>", page)
    assert count == 1
    return found | {"digest": digest(workdir)}


def relabelled(examples, chosen):
    """The same examples, with other labels where a mask says so."""
    records = tuple(
        dataclasses.replace(record, label=(record.label + 1) % 7) if own else record
        for record, own in zip(examples.records, chosen, strict=True)
    )
    return dataclasses.replace(examples, records=records)


@pytest.mark.parametrize("task", [sgan, classifier])
def test_a_hidden_label_reaches_nothing(tmp_path, monkeypatch, task):
    config = tiny(task, data__sampling="balanced", loss__class_weights="balanced")
    api.train(config.copy_and_resolve_references(), tmp_path / "first")
    examples = run_lib.load_examples(config)
    assignment, hidden = splits.read(
        tmp_path / "first" / "splits.csv", examples.records, examples.classes
    )
    assert 0 < hidden.sum() < (assignment == "train").sum()
    assert set(assignment[hidden]) == {"train"}
    # A split and a choice of labels that other labels would have changed, too.
    monkeypatch.setattr(splits, "draw", lambda *args, **kwargs: assignment)
    monkeypatch.setattr(splits, "hidden_labels", lambda *args: hidden)
    seen = np.flatnonzero((assignment == "train") & ~hidden)
    for place, chosen in (("hidden", hidden), ("seen", np.isin(np.arange(len(hidden)), seen[:1]))):
        other = relabelled(examples, chosen)
        monkeypatch.setattr(run_lib, "load_examples", lambda config, other=other: other)
        api.train(config.copy_and_resolve_references(), tmp_path / place)
    assert results(tmp_path / "hidden") == results(tmp_path / "first")
    assert digest(tmp_path / "seen") != digest(tmp_path / "first")


def test_a_batch_begins_with_labelled_images_and_ends_with_all_the_others(workdir):
    experiment = start(tiny(data__labelled_share=0.25, num_steps=60), workdir)
    batches = [
        jax.tree.map(np.asarray, experiment.pipeline.gather(experiment.pipeline.resident, feed))
        for feed in loop.feeds(experiment, 0)
    ]
    labels = np.stack([batch["label"] for batch in batches])
    assert labels.shape == (60, 8)
    assert (labels[:, :2] != UNLABELLED).all()
    assert (labels[:, 2:] == UNLABELLED).all()
    images = np.stack([batch["image"] for batch in batches])
    for rows, indices in (
        (images[:, :2], experiment.indices("train")),
        (images[:, 2:], experiment.unlabelled_indices),
    ):
        drawn = {image.tobytes() for image in rows.reshape(-1, *images.shape[2:])}
        assert drawn == {image.tobytes() for image in experiment.examples.images[indices]}
    train = np.concatenate([experiment.indices("train"), experiment.unlabelled_indices])
    assert (experiment.assignment[train] == "train").all()
    assert len(train) == (experiment.assignment == "train").sum()


@pytest.mark.parametrize(
    ("task", "changes"), [(dcgan, {}), (classifier, {"loss__self_training": 0.0})]
)
def test_a_task_without_a_use_for_them_sees_labelled_images_alone(workdir, capsys, task, changes):
    experiment = start(tiny(task, num_steps=40, **changes), workdir)
    feeds = [np.asarray(feed["label"]) for feed in loop.feeds(experiment, 0)]
    assert np.concatenate(feeds).min() >= 0
    assert "others have no place in the batches of this run" in capsys.readouterr().out


def test_hidden_labels_change_neither_the_length_of_a_run_nor_val_and_test(tmp_path):
    found = []
    for fraction in (1.0, 0.4):
        workdir = tmp_path / str(fraction)
        workdir.mkdir()
        config = tiny(num_steps=None, num_epochs=3, data__label_fraction=fraction)
        experiment = start(config, workdir)
        counts = [experiment.class_counts(split).tolist() for split in ("val", "test")]
        found.append((experiment.num_steps, experiment.steps_per_epoch, counts))
    assert found[0] == found[1]


def test_a_reopened_run_knows_what_it_knew_in_training(workdir):
    experiment = start(tiny(), workdir)
    again = reopen(workdir)
    assert again.examples.records == experiment.examples.records
    assert again.task.labelled_rows == experiment.task.labelled_rows == 4
    np.testing.assert_array_equal(again.class_counts("train"), trained(workdir).train_counts)
    named = (workdir / "splits.csv").read_text()
    assert named.count(",,train") == len(experiment.unlabelled_indices) > 0
    # A copy of an image is one, whether or not its label is known.
    assert len(audit.real_images(again).ids) == (again.assignment == "train").sum()
    # A generator of all labels is foreign to a run that is not to know them.
    (workdir / "config.json").unlink()
    whole = start(tiny(data__label_fraction=1.0), workdir)
    members = [
        splits.members_of(e.examples.records, e.assignment, "train", e.classes)
        for e in (experiment, whole)
    ]
    assert [image for image, _ in members[0]] == [image for image, _ in members[1]]
    assert members[0] != members[1]


@pytest.mark.parametrize("task", [sgan, pytest.param(classifier, marks=pytest.mark.soak)])
def test_an_interrupted_run_ends_like_an_undisturbed_one(tmp_path, task):
    constant = {"optimizer__schedule": "constant"}
    api.train(tiny(task, **constant), tmp_path / "whole")
    for steps in (2, 4):
        api.train(tiny(task, num_steps=steps, **constant), tmp_path / "pieces")
    assert digest(tmp_path / "pieces") == digest(tmp_path / "whole")


@pytest.mark.parametrize("task", [sgan, classifier])
def test_several_devices_learn_the_same(tmp_path, task):
    found = []
    for count in (1, 2):
        workdir = tmp_path / str(count)
        workdir.mkdir()
        config = tiny(task, sharding__num_devices=count)
        experiment = start(config, workdir)
        dispatch, placement = loop.make_dispatch(experiment), experiment.placement
        rng = jax.device_put(jax.random.key(0), placement)
        state = jax.jit(experiment.task.init, out_shardings=placement)(rng)
        feed = next(loop.feeds(experiment, 0))
        found.append(dispatch(state, experiment.pipeline.resident, feed, rng)[1])
    for key, value in found[0].items():
        np.testing.assert_allclose(value, found[1][key], rtol=1e-3, atol=1e-5, err_msg=key)


def test_a_batch_of_one_row_cannot_hold_both(workdir):
    with pytest.raises(UserError, match=r"config\.batch_size is 1, but .* give at least 2"):
        start(tiny(batch_size=1), workdir)


def test_baselines_learn_from_labelled_images_alone():
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    features = np.eye(3)[labels] + 0.1 * rng.normal(size=(90, 3))
    assignment = np.repeat(["train", "val", "test"], 30)
    some = np.where((np.arange(90) < 30) & (labels == 0), UNLABELLED, labels)
    assert logistic_regression(features, labels, assignment)[0] == 1.0
    assert logistic_regression(features, some, assignment)[0] == pytest.approx(2 / 3)
