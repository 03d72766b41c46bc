"""skin_jax from Python: load, predict, explain, features, generate, evaluate."""

import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import skin_jax
from skin_jax import UserError
from skin_jax.data import generated
from skin_jax.eval import calibration, generation
from skin_jax.training.run import reopen

pytestmark = pytest.mark.xdist_group("export")  # one worker makes `small_gan`, once

SIZE = 32


@pytest.fixture(scope="module")
def run(small_gan):
    return skin_jax.load(str(small_gan))


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)


def test_the_names_are_there_without_jax_before_they_are_used():
    program = (
        "import sys, skin_jax\n"
        "assert not {'jax', 'flax', 'matplotlib'} & {*sys.modules}\n"
        "names = [getattr(skin_jax, name) for name in skin_jax.__all__]\n"
        "from skin_jax.training import loop\n"
        "print(skin_jax.train.__module__, skin_jax.load.__module__)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "skin_jax.api skin_jax.api\n", done.stderr
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        skin_jax.lode  # noqa: B018


def test_an_image_is_the_same_however_it_is_given(run, pixels, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(len(pixels))]
    opened = [Image.fromarray(image) for image in pixels]
    for path, image in zip(paths, opened, strict=True):
        image.save(path)
    expected = run.predict(pixels)
    assert expected.shape == (5, len(run.classes))
    np.testing.assert_allclose(expected.sum(axis=1), 1, atol=1e-5)
    assert expected.std() > 0
    for given in (paths, [*map(str, paths)], opened, list(pixels), jnp.asarray(pixels)):
        np.testing.assert_array_equal(run.predict(given), expected)
    assert opened[0].getpixel((0, 0)) is not None  # it was not closed
    for alone in (paths[1], str(paths[1]), opened[1], pixels[1]):
        np.testing.assert_allclose(run.predict(alone), expected[1:2], atol=1e-6)


def test_batches_change_nothing(run, pixels):
    for ability in (run.predict, run.features, run.explain):
        whole = ability(pixels)
        assert len(whole) == 5
        np.testing.assert_allclose(ability(pixels, batch_size=2), whole, atol=1e-5)
    turned = np.rot90(pixels, axes=(1, 2))
    assert np.abs(run.predict(turned) - run.predict(pixels)).max() > 5e-6  # hardly trained
    both = run.predict(turned, tta=True), run.predict(pixels, tta=True)
    np.testing.assert_allclose(*both, atol=1e-6)


def test_an_explanation_is_of_the_class_that_is_asked_for(run, pixels):
    predicted = run.predict(pixels).argmax(axis=1)
    found = run.explain(pixels)
    assert found.min() >= 0
    assert found.max() <= 1
    names = [run.classes.names[label] for label in predicted]
    np.testing.assert_array_equal(run.explain(pixels, names), found)
    other = run.explain(pixels, (predicted + 1) % len(run.classes), batch_size=2)
    assert np.abs(other - found).max() > 1e-3
    with pytest.raises(UserError, match="4 labels for 5 images"):
        run.explain(pixels, names[:4])
    with pytest.raises(UserError, match="no class 'wart'; there are akiec"):
        run.explain(pixels[0], ["wart"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.zeros((8, 8, 3), np.float32), "array of float32, .*; give uint8, 0 to 255"),
        ([np.zeros((8, 8), bool)], "array of bool"),
        (np.zeros((8, 8, 4), np.uint8), r"shape \[8, 8, 4\]; give \[H, W, 3\]"),
        (np.zeros((0, 8, 3), np.uint8), r"shape \[0, 8, 3\]"),
        ([], "there are no images"),
        ([None], "not a NoneType"),
        ("nowhere.png", "nowhere.png cannot be read: No such file"),
    ],
)
def test_what_is_no_image_is_refused(run, given, said):
    with pytest.raises(UserError, match=said):
        run.predict(given)


def test_what_was_not_calibrated_is_not_made_up(run, pixels, small_gan, tmp_path):
    for ask in (lambda: run.predict(pixels, calibrated=True), lambda: run.unlikeness(pixels)):
        with pytest.raises(UserError, match=r"has no .*skin_jax\.eval\.calibrate --workdir"):
            ask()
    out = tmp_path / "zoo"
    run.export(out)
    step = json.loads((small_gan / "eval" / "test" / "metrics.json").read_text())["step"]
    calibration.write(out, calibration.Calibration(2.0, 3.0, "val", 9, step), None)
    shipped = skin_jax.load(out)
    expected = calibration.applied(shipped.predict(pixels), 2.0)
    np.testing.assert_allclose(shipped.predict(pixels, calibrated=True), expected, atol=1e-9)
    shipped.export(tmp_path / "again")
    again = skin_jax.load(tmp_path / "again")
    np.testing.assert_array_equal(again.predict(pixels, calibrated=True), expected)


def test_images_are_those_of_the_command(run, small_gan, tmp_path, generate_with, monkeypatch):
    whole = run.generate(n=70, seed=3)
    assert whole.shape == (70, SIZE, SIZE, 3)
    assert whole.dtype == np.uint8
    np.testing.assert_array_equal(run.generate(n=2, seed=3), whole[:2])
    assert not np.array_equal(run.generate(n=2, seed=4), whole[:2])

    name = run.classes.names[np.bincount(run.predict(whole).argmax(axis=1)).argmax()]
    out = tmp_path / "generated"
    generate_with(workdir=small_gan, out=out, per_class=2, classes=name, seed=3, min_confidence=0.0)
    rows = generated.read(out, run.classes)
    shown = np.stack([np.asarray(Image.open(out / row.image)) for row in rows])
    np.testing.assert_array_equal(shown, whole[[row.index for row in rows]])
    monkeypatch.setattr(generation, "MIN_CONFIDENCE", 0.0)  # hardly trained, it is of none
    np.testing.assert_array_equal(run.generate(name, 2, seed=3), shown)
    monkeypatch.setattr(generation, "MIN_CONFIDENCE", 1.0)
    monkeypatch.setattr(generation, "_LEAST_TRIES", 64)
    with pytest.raises(UserError, match=f"0 of the first 100 images are taken for {name}"):
        run.generate(name, 2, seed=3)


def test_an_evaluation_is_that_of_its_images(run, small_gan):
    found = run.evaluate(split="val")
    experiment = reopen(small_gan)
    val = experiment.indices("val")
    probabilities = run.predict(experiment.examples.images[val])
    np.testing.assert_allclose(found.probabilities, probabilities, atol=1e-5)
    measured = skin_jax.metrics(probabilities, experiment.examples.labels[val], resamples=0)
    assert measured.balanced_accuracy == pytest.approx(found.metrics.balanced_accuracy)
    with pytest.raises(UserError, match="nowhere"):
        run.evaluate("nowhere")


def test_a_walk_leads_from_one_image_to_another(run):
    found = run.walk(seed=3)
    assert found.shape == (8, SIZE, SIZE, 3)
    ends = run.generate(n=2, seed=3)
    np.testing.assert_array_equal(found[[0, -1]], ends)
    steps = np.abs(np.diff(found.astype(float), axis=0)).mean(axis=(1, 2, 3))
    assert steps.max() < np.abs(ends[1].astype(float) - ends[0]).mean()
    assert not run.can("walk")
    with pytest.raises(UserError, match="does not know what lies between classes"):
        run.walk("mel", "nv")


def test_abilities_are_named(run):
    can = [what for what in ("predict", "explain", "generate", "features") if run.can(what)]
    assert can == ["predict", "explain", "generate", "features"]
    assert not run.can("calibrated")
    assert not run.can("unlikeness")
    assert run.generates == (None, *run.classes.names)
