"""What is watched while one GAN a class trains; generators here are stand-ins with known images."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from skin_jax.base.errors import UserError
from skin_jax.data import demo
from skin_jax.eval import candidates, evaluators, features, quality
from skin_jax.report import figures
from skin_jax.tasks.dcgan import Dcgan
from skin_jax.tasks.declared import dcgan
from skin_jax.training.run import start

pytestmark = pytest.mark.xdist_group("class_gans")  # one worker makes the fixtures, once


def experiment_in(folder, **changes):
    config = dcgan.defaults()
    small = {
        "batch_size": 8,
        "data.demo_images": demo.MIN_IMAGES,
        "data.image_size": 32,
        "data.pipeline": "device",
        "model.width": 4,
        "num_steps": 2,
        "score.images": 6,
        "sharding.num_devices": 1,
    }
    config.update_from_flattened_dict(small | changes)
    config.classes = ("df", "nv")
    folder.mkdir(exist_ok=True)
    return start(config, folder)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return experiment_in(tmp_path_factory.mktemp("run"))


@pytest.fixture
def state(experiment):
    return experiment.task.init(jax.random.key(0))  # a call takes it away


def watching(experiment, path=None):
    """The evaluator of generators; its picture goes to a path."""
    return evaluators.Generators(
        experiment,
        evaluators.Pictures(
            samples=lambda *_: pytest.fail("it draws by class"),
            by_class=lambda step, shown: path and figures.real_and_generated_by_class(path, shown),
        ),
    )


def test_each_discriminator_is_asked_about_images_of_its_class(experiment, state):
    told = {}
    ignore = evaluators.Pictures(samples=lambda *_: None, by_class=lambda *_: None)
    pictures = ignore._replace(histograms=lambda step, values: told.update({step: values}))
    watch = evaluators.Generators(experiment, pictures)
    one, other = (experiment.task.realness(state, watch._real[0], k) for k in watch._labels)
    assert not np.allclose(one, other)
    state, _ = watch(state, 2)
    found = told[2]
    kinds = ("real", "generated")
    assert set(found) == {f"realness_{kind}/{name}" for kind in kinds for name in ("df", "nv")}
    for values in found.values():
        assert values.shape == (6,)
        assert ((values > 0) & (values < 1)).all()
    assert set(watch.results(state)) == {"best_swd/df", "best_swd/nv"}


def stand_in(monkeypatch, experiment, *, same: str = ""):
    """Generators whose images are the class's own training images, or one and the same."""
    train = experiment.indices("train")
    labels = experiment.examples.labels[train]
    pools = []
    for place, label in enumerate(experiment.task.labels):
        pool = experiment.examples.images[train[labels == label]]
        name = ("df", "nv")[place]
        pools.append(jnp.asarray(np.resize(pool[:1] if name == same else pool, (40, 32, 32, 3))))
    images = jnp.stack(pools)

    def images_of(self, generators, label, noise):
        chosen = (jnp.abs(noise[:, 0]) * 40).astype(int)
        place = jnp.searchsorted(jnp.asarray(self.labels), label)
        return images[place][chosen].astype(jnp.float32) / 127.5 - 1

    monkeypatch.setattr(Dcgan, "images_of", images_of)


def test_real_images_score_better_than_those_of_a_fresh_generator(
    experiment, state, monkeypatch, tmp_path
):
    _, fresh = watching(experiment)(state, 1)
    stand_in(monkeypatch, experiment)
    watch = watching(experiment)
    _, real = watch(experiment.task.init(jax.random.key(0)), 1)
    own = {f"{key}/{name}" for key in ("swd", "diversity") for name in ("df", "nv")}
    assert set(real) == own | {"images_seen"}
    assert real["images_seen"] == experiment.rows
    for name in ("df", "nv"):
        assert real[f"swd/{name}"] < 0.7 * fresh[f"swd/{name}"]
        assert fresh[f"diversity/{name}"] < evaluators.COLLAPSED < real[f"diversity/{name}"]


def test_a_collapsed_class_is_named_and_no_other(experiment, state, monkeypatch, tmp_path, capsys):
    stand_in(monkeypatch, experiment, same="nv")
    watching(experiment)(state, 7)
    captured = capsys.readouterr()
    assert "warning: step 7: the images of nv are nearly identical" in captured.err
    assert "df" not in captured.err
    assert "step 7  swd: df 0." in captured.out


def test_a_collapse_is_said_once_and_a_recovery_is_none(experiment, monkeypatch, tmp_path, capsys):
    init = functools.partial(experiment.task.init, jax.random.key(0))
    stand_in(monkeypatch, experiment, same="nv")
    watch = watching(experiment)
    for _ in range(2):
        watch(init(), 1)
    assert capsys.readouterr().err.count("nearly identical") == 1
    watch._collapsed = ["df", "nv"]  # df recovers
    watch(init(), 2)
    assert not capsys.readouterr().err
    assert watch._collapsed == ["nv"]
    watch._collapsed = []
    watch(init(), 3)
    assert "step 3: the images of nv are nearly identical" in capsys.readouterr().err


def test_images_that_get_worse_for_good_are_said_once(experiment, monkeypatch, tmp_path, capsys):
    watch = watching(experiment)
    scores = iter([1.0, 2.1, 2.2, 1.9, 2.1, 2.2, 2.3, 2.4, 0.5])
    monkeypatch.setattr(watch, "_compare", lambda place, images: (next(score), 1.0))
    state, said = experiment.task.init(jax.random.key(0)), []
    for step, value in enumerate(scores):
        score = iter([value, value])
        state, _ = watch(state, step)
        said.append("have got worse" in capsys.readouterr().err)
    assert said == [False] * 6 + [True] + [False] * 2


def test_a_class_of_equal_real_images_has_no_diversity(experiment, state, monkeypatch, tmp_path):
    watch = watching(experiment)
    watch._real[0][:] = 0
    _, values = watch(state, 1)
    assert np.isnan(values["diversity/df"])
    assert np.isfinite(values["diversity/nv"])


def test_generators_are_not_chosen_by_images_that_are_generated_later(experiment, state):
    watch = watching(experiment)
    label = int(experiment.task.labels[0])
    generators = jax.tree.map(lambda x: 5 * x, experiment.task.generators(state))
    sampler = candidates.Sampler(experiment.task, generators, experiment.classes.names, 0, "run")
    later = sampler.batch("df", 0)
    chosen_by = watch._generated(generators, label)
    assert not any((later == image).all(axis=(1, 2, 3)).any() for image in chosen_by)


def test_the_picture_has_a_row_for_each_class(experiment, state, monkeypatch, tmp_path):
    stand_in(monkeypatch, experiment)
    watching(experiment, tmp_path / "samples/step_1.png")(state, 1)
    with Image.open(tmp_path / "samples/step_1.png") as picture:
        pixels = np.asarray(picture.convert("L"), int)
    bar = (pixels < 80).mean(axis=0).argmax()  # between real and generated images
    white = (pixels[:, bar] > 250).astype(int)
    assert (np.diff(white) == -1).sum() == 2  # it begins anew in each row


def test_the_state_keeps_the_generators_that_scored_best(experiment, state, tmp_path):
    watch = watching(experiment)
    state, values = watch(state, 1)
    np.testing.assert_allclose(state.best_score, [values["swd/df"], values["swd/nv"]], rtol=1e-6)
    again, same = watch(state, 2)
    assert same == values | {"images_seen": 2 * values["images_seen"]}  # same images, same noise
    np.testing.assert_allclose(again.best_score, [values["swd/df"], values["swd/nv"]], rtol=1e-6)


def test_the_score_is_the_kid_of_features_where_weights_are_given(
    experiment, state, monkeypatch, tmp_path
):
    asked = []

    class Mean:
        def __call__(self, images):
            return images.reshape(len(images), -1, 3).mean(axis=1, dtype=np.float32)

    def extractor(weights, mesh, flag):
        asked.append((weights, flag))
        return Mean()

    monkeypatch.setattr(features, "efficientnet_lite", extractor)
    with experiment.config.unlocked():
        weights = experiment.config.score.weights
        experiment.config.score.weights = "some.safetensors"
        watch = watching(experiment)
        experiment.config.score.weights = weights
    assert asked == [("some.safetensors", "--config.score.weights")]
    assert watch.measure == "kid"
    generators = experiment.task.generators(state)
    generated = watch._generated(generators, int(experiment.task.labels[1]))
    assert generated.shape == (6, 32, 32, 3)
    _, values = watch(state, 1)
    train = experiment.indices("train")
    real = train[experiment.examples.labels[train] == experiment.task.labels[1]]
    chosen = np.random.default_rng(0).permutation(real)[:6]
    expected = quality.kid(Mean()(experiment.examples.images[chosen]), Mean()(generated))
    np.testing.assert_allclose(values["kid/nv"], expected, rtol=1e-6)


def test_classes_without_training_images_are_named(tmp_path, monkeypatch):
    make = demo.generate

    def without_df(*args):
        examples = make(*args)
        records = (replace(r, label=5 if r.label == 3 else r.label) for r in examples.records)
        return replace(examples, records=tuple(records))

    monkeypatch.setattr(demo, "generate", without_df)
    with pytest.raises(UserError, match=r"config\.classes: the training split has no images of df"):
        experiment_in(tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()
