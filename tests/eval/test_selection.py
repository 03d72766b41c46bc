import dataclasses

import numpy as np
import pytest

from skin_jax import api
from skin_jax.base.errors import UserError
from skin_jax.data.classes import HAM10000, Classes
from skin_jax.eval import audit, selection
from skin_jax.tasks.declared import classifier, sgan
from skin_jax.training.run import reopen, trained

pytestmark = pytest.mark.xdist_group("selection")

SMALL = {
    "num_steps": 2,
    "batch_size": 8,
    "eval_batch_size": 16,
    "data.demo_images": 140,
    "data.image_size": 32,
    "data.pipeline": "device",
    "data.split_fractions": (0.8, 0.2, 0.0),
    "sharding.num_devices": 1,
    "log.tensorboard": False,
}


def train(folder, declared, **changes):
    config = declared.defaults()
    config.update_from_flattened_dict(SMALL | changes)
    api.train(config, folder)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A generator, and a classifier of the same training images that looks at them larger."""
    folder = tmp_path_factory.mktemp("runs")
    network = {
        "model.name": "cnn",
        "model.width_multiplier": 0.25,
        "optimizer.warmup_steps": 1,
        "data.image_size": 48,
    }
    return (
        train(folder / "sgan", sgan, **{"model.width": 4}),
        train(folder / "classifier", classifier, **network),
    )


def test_copies_and_what_is_not_of_the_class_are_passed_over(runs, monkeypatch):
    generator, own = map(trained, runs)
    real = audit.real_images(reopen(runs[0]))
    pictures = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    planted = [3, 17, 40]
    pictures[planted] = np.rot90(real.images[[5, 9, 30]], axes=(1, 2))
    monkeypatch.setattr(selection, "LEAST", 0.0)
    monkeypatch.setattr(selection, "MOST", 1.0)
    judge = selection.judgement(own, generator)
    everything = judge("nv", pictures)
    assert np.isnan(everything[planted]).all()
    others = np.setdiff1d(np.arange(64), planted)
    assert (~np.isnan(everything[others])).mean() > 0.9
    middle = np.nanmedian(everything)
    monkeypatch.setattr(selection, "MOST", middle)
    np.testing.assert_array_equal(
        judge("nv", pictures), np.where(everything <= middle, everything, np.nan)
    )
    of_all = sum(np.nan_to_num(judge(name, pictures)) for name in HAM10000.names if name != "nv")
    assert of_all.max() <= 1.0  # each is the probability of its own class


def test_a_classifier_of_other_images_or_classes_is_refused(runs, monkeypatch):
    generator, own = map(trained, runs)
    with monkeypatch.context() as patch:
        patch.setattr(selection, "fitted_on", lambda workdir: workdir.name)
        with pytest.raises(UserError, match="classifier was trained on other images than"):
            selection.judgement(own, generator)
    fewer = dataclasses.replace(generator, classes=Classes.of(["one", "two"]))
    with pytest.raises(UserError, match=r"the classes of .*classifier are akiec, .* one, two"):
        selection.judgement(own, fewer)
