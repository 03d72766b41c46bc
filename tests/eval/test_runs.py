import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from skin_jax.base.errors import UserError
from skin_jax.data import store
from skin_jax.data.classes import CLASSES
from skin_jax.eval import runs, tables
from skin_jax.train import checkpoints as checkpoint_lib
from skin_jax.train.run import best_state, reopen

pytestmark = pytest.mark.xdist_group("small_gan")  # one worker trains it, once


@pytest.fixture(scope="module")
def workdir(small_gan, tmp_path_factory):
    return shutil.copytree(small_gan, tmp_path_factory.mktemp("copy") / "tiny")


@pytest.fixture
def experiment(workdir):
    return reopen(workdir)


@pytest.fixture
def checkpoints(workdir):
    opened = checkpoint_lib.Checkpoints(workdir / "checkpoints", read_only=True)
    yield opened
    opened.close()


def test_predictions_are_those_of_the_best_checkpoint(workdir, experiment, checkpoints):
    state, step = best_state(experiment.task, checkpoints, experiment.mesh)
    assert step == checkpoints.best_step()
    indices = experiment.indices("test")
    expected = experiment.task.predict(state, experiment.examples.images[indices])
    written = tables.read_predictions(workdir / "eval/test/predictions.csv")
    assert list(written.image_ids) == [experiment.examples.records[i].image_id for i in indices]
    np.testing.assert_allclose(written.probabilities, expected, atol=1e-6)


def test_an_empty_split_is_said_and_writes_nothing(experiment, checkpoints, tmp_path, capsys):
    nothing = np.full(len(experiment.assignment), "train")
    without_test = type(experiment)(**{**vars(experiment), "assignment": nothing})
    assert runs.evaluate_split(without_test, checkpoints, "test", tmp_path) is None
    assert "leaves no test images" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_checkpoints_says_so(experiment, tmp_path):
    empty = checkpoint_lib.Checkpoints(tmp_path / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint yet"):
        best_state(experiment.task, empty, experiment.mesh)
    empty.close()


def test_another_labelled_folder_is_evaluated_whole(workdir, experiment, checkpoints, tmp_path):
    for label, name in enumerate(CLASSES):
        folder = tmp_path / "other" / name
        folder.mkdir(parents=True)
        for i in range(2):
            pixels = np.random.default_rng([label, i]).integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}_{i}.png")
    examples = store.prepare(
        tmp_path / "other", image_size=32, cache_dir=tmp_path / "cache", progress=False
    )
    evaluation = runs.evaluate_examples(experiment.task, checkpoints, examples, 5, tmp_path / "out")
    assert evaluation.metrics.num_examples == 14
    assert not evaluation.metrics.lesions_known
    np.testing.assert_array_equal(evaluation.metrics.support, np.full(7, 2))
    state, _ = best_state(experiment.task, checkpoints, experiment.mesh)
    expected = experiment.task.predict(state, jax.numpy.asarray(examples.images))
    np.testing.assert_allclose(evaluation.probabilities, expected, atol=1e-6)
    assert (tmp_path / "out" / "metrics.json").exists()
