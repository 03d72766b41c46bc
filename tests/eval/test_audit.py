import dataclasses
import json
import os
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from skin_jax import api, tasks
from skin_jax.base import devices
from skin_jax.base.errors import UserError
from skin_jax.data import demo, splits
from skin_jax.data import generated as generated_lib
from skin_jax.data.classes import HAM10000, Classes
from skin_jax.data.images import decode
from skin_jax.eval import audit, features, quality
from skin_jax.report import quality as quality_report
from skin_jax.tasks.declared import sgan
from skin_jax.training.run import reopen, trained

pytestmark = pytest.mark.xdist_group("audit")  # one worker makes the fixtures, once

SMALL = {
    "num_steps": 2,
    "batch_size": 8,
    "eval_batch_size": 16,
    "data.demo_images": 140,
    "data.image_size": 32,
    "data.pipeline": "device",
    "data.split_fractions": (0.8, 0.2, 0.0),
    "model.width": 4,
    "sharding.num_devices": 1,
    "log.tensorboard": False,
}
CLASSES = HAM10000.names
DF, NV = CLASSES.index("df"), CLASSES.index("nv")


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(audit, "DRAWS", 3)
    monkeypatch.setattr(audit, "PATCHED_IMAGES", 10)
    monkeypatch.setattr(quality, "_DIRECTIONS", 32)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    config = sgan.defaults()
    config.update_from_flattened_dict(SMALL)
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    api.train(config, folder)
    return folder


@pytest.fixture(scope="module")
def real(workdir):
    return audit.real_images(reopen(workdir))


def blocks(state, images):
    """Mean colours in a grid of 4x4, relative to the image's own."""
    B, H, W, _ = images.shape
    x = images.reshape(B, 4, H // 4, 4, W // 4, 3).astype(jnp.float32).mean(axis=(2, 4))
    return (x - x.mean(axis=(1, 2), keepdims=True)).reshape(B, -1) + state


@pytest.fixture(scope="module")
def extractor():
    mesh = devices.make_mesh(None)
    assert mesh.size > 1
    return features.Extractor(
        blocks, jnp.float32(0.5), image_size=16, mesh=mesh, network="blocks of colour"
    )


def generated(images, labels, train_split):
    return audit.Generated(
        images=images,
        labels=np.asarray(labels),
        names=[f"{CLASSES[label]}/{i}.png" for i, label in enumerate(labels)],
        train_splits=frozenset([train_split]),
    )


def cropped(image, share=0.94):
    size = image.shape[0]
    cut = round(size * (1 - share) / 2)
    inner = Image.fromarray(image[cut : size - cut, cut : size - cut])
    return np.asarray(inner.resize((size, size), Image.Resampling.BILINEAR))


def others(count, seed=1):
    """Procedural lesions that are in no split."""
    images = demo.generate(demo.MIN_IMAGES, 32, seed).images
    return np.random.default_rng(0).permutation(images)[:count]


def write_folder(folder, images, labels, train_split):
    rows = []
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        row = generated_lib.Generated(
            image=f"{CLASSES[label]}/{i}.png",
            label=CLASSES[label],
            index=i,
            confidence=0.5,
            seed=0,
            step=2,
            run="tiny-0123",
            train_split=train_split,
        )
        (folder / CLASSES[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / row.image)
        rows.append(row)
    generated_lib.write(folder, rows)


def test_features_do_not_depend_on_the_batch_and_images_are_resized_as_pillow_does(extractor):
    images = demo.generate(demo.MIN_IMAGES, 32, 0).images[:70]  # a batch and a bit
    pixels = features.Extractor(
        lambda state, x: x.reshape(len(x), -1).astype(jnp.float32),
        jnp.float32(0),
        image_size=20,
        mesh=devices.make_mesh(None),
        network="pixels",
    )
    resized = pixels(images)
    assert (resized.shape, resized.dtype) == ((70, 1200), np.float32)
    for i in (0, 63, 64, 69):
        expected = Image.fromarray(images[i]).resize((20, 20), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(resized[i], np.ravel(expected), atol=1)
        np.testing.assert_array_equal(pixels(images[i : i + 1])[0], resized[i])
    assert "pixels, of images at 20x20" in pixels.description
    assert extractor(images[:, ::2, ::2]).shape == (70, 48)  # the size that it has: not resized
    broken = features.Extractor(
        blocks, jnp.float32(np.nan), image_size=16, mesh=devices.make_mesh(None), network="broken"
    )
    with pytest.raises(UserError, match="not all features of broken, of images at 16x16"):
        broken(images)


def test_generated_like_real_reach_the_floor_and_others_do_not(real, extractor):
    real = dataclasses.replace(real, labels=np.where(real.labels == DF, DF, NV))
    half = real.images[real.labels == NV][:40]
    noise = np.random.default_rng(0).integers(0, 256, half.shape, dtype=np.uint8)
    good, bad = (
        audit.audit(real, generated(x, [NV] * 40, real.train_split), extractor).groups
        for x in (half, noise)
    )
    assert [group.name for group in good] == [*CLASSES, "overall"]
    for index in (NV, -1):
        near, far = good[index], bad[index]
        assert near.floor == far.floor
        assert near.compared == min(near.half, 40) == 40
        assert near.half == near.train // 2
        assert abs(near.values["kid"].mean) < 0.2 * far.values["kid"].mean
        assert near.shuffled_kid.mean > 5 * near.halves["kid"].mean
        assert near.values["fid"].mean < 0.5 * far.values["fid"].mean
        assert near.values["swd"].mean < 0.5 * far.values["swd"].mean
        assert near.values["recall"].mean > 0.8
        assert far.values["recall"].mean < 0.2
        for key in audit.MEASURES:
            assert np.isfinite([near.floor[key], near.halves[key]]).all()
    # Classes without training images, or without generated ones.
    assert np.isnan([good[0].values["kid"].mean, good[0].halves["swd"].mean]).all()
    assert np.isnan(good[DF].values["kid"].mean)
    assert np.isfinite(good[DF].halves["kid"].mean)


def test_the_floor_is_of_disjoint_halves_and_always_the_same(real, extractor, monkeypatch):
    picture = generated(others(8), [NV] * 8, real.train_split)
    compared, kid = [], quality.kid

    def watched(x, y):
        compared.append(({row.tobytes() for row in x}, {row.tobytes() for row in y}))
        return kid(x, y)

    monkeypatch.setattr(quality, "kid", watched)
    first, again = (audit.audit(real, picture, extractor) for _ in range(2))
    for a, b in zip(first.groups, again.groups, strict=True):
        assert json.dumps(dataclasses.asdict(a)) == json.dumps(dataclasses.asdict(b))
    assert len({row.tobytes() for row in extractor(real.images)}) == len(real.images)
    assert all(x.isdisjoint(y) for x, y in compared)
    sizes = {(len(x), len(y)) for x, y in compared}
    half = len(real.images) // 2
    assert {(half, half), (half, 8)} <= sizes
    assert first.groups[-1].halves["kid"].sd > 0


def test_planted_copies_are_found_however_they_are_turned(real, extractor, tmp_path):
    rng = np.random.default_rng(0)
    planted = {10: real.images[3], 20: cropped(real.images[40][:, ::-1]), 30: None}
    planted[30] = np.rot90(cropped(real.images[7]))
    images = others(40)
    for place, copy in planted.items():
        images[place] = copy
    labels = rng.choice([DF, NV], 40)
    folder = generated(images, labels, real.train_split)
    found = audit.audit(real, folder, extractor)
    copies = found.copies
    assert set(planted) <= {pair.generated for pair in copies.closest[:5]}
    assert (copies.distances[list(planted)] < copies.threshold).all()
    by_image = {pair.generated: pair.train for pair in copies.closest}
    assert [by_image[place] for place in planted] == [3, 40, 7]
    assert copies.closest[0].generated == 10
    assert copies.closest[0].distance == pytest.approx(0, abs=1e-6)
    overall = found.groups[-1].nearness
    assert (overall.generated, overall.val) == (40, len(real.val_images))
    assert overall.share >= 3 / 40
    np.testing.assert_array_equal(copies.closest[0].picture, images[10])

    text = quality_report.write(tmp_path, [found], {"run": "tiny"})
    content = json.loads((tmp_path / "quality.json").read_text())
    closest = content["copies"]["closest"]
    assert len(closest) == audit.PAIRS_SHOWN
    assert closest[0]["image"] == folder.names[10]
    assert closest[0]["nearest"] == real.ids[3]
    assert content["copies"]["groups"]["akiec"]["share_under_threshold"] is None
    assert content["copies"]["groups"]["overall"]["share_under_threshold"] >= 3 / 40
    assert "under val's 1st percentile" in text
    with Image.open(tmp_path / "closest_pairs.png") as picture:
        assert picture.size[0] > 500


def test_val_images_of_trained_lesions_are_no_yardstick(workdir):
    experiment = reopen(workdir)
    val, first = experiment.indices("val"), experiment.indices("train")[0]
    records = list(experiment.examples.records)
    records[val[0]] = dataclasses.replace(records[val[0]], lesion_id=records[first].lesion_id)
    examples = dataclasses.replace(experiment.examples, records=tuple(records))
    found = audit.real_images(dataclasses.replace(experiment, examples=examples))
    np.testing.assert_array_equal(found.val_images, experiment.examples.images[val[1:]])
    members = splits.members(workdir / "splits.csv", "train")
    assert found.train_split == generated_lib.train_split_digest(members)


def test_too_few_images_are_null_and_said(real, extractor, tmp_path):
    """akiec 0, bcc 1, bkl 3, df 4 training images; one generated mel; no val images."""
    real = audit.Real(
        classes=HAM10000,
        images=real.images[:44],
        labels=np.repeat(np.arange(7), (0, 1, 3, 4, 12, 12, 12)),
        ids=real.ids[:44],
        val_images=real.val_images[:0],
        val_labels=real.val_labels[:0],
        train_split="other",
    )
    folder = generated(others(17), [0, 1, 1, 1, 2, 2, 3, 3, 3, 4, *[NV] * 7], "0" * 64)
    found = audit.audit(real, folder, extractor)
    text = " ".join(quality_report.write(tmp_path, [found], {}).split())
    groups = json.loads((tmp_path / "quality.json").read_text())["groups"]
    for name in ("akiec", "bcc", "bkl"):
        for key in ("generated", "floor", "halves", "shuffled"):
            for value in groups[name][key].values():
                assert value == {"mean": None, "sd": None}, (name, key)
    assert groups["df"]["halves"]["kid"]["mean"] is not None
    assert groups["df"]["halves"]["precision"]["mean"] is None
    assert groups["mel"]["generated"]["kid"]["mean"] is None
    assert groups["mel"]["halves"]["precision"]["mean"] is not None
    assert groups["nv"]["generated"]["recall"]["mean"] is not None
    assert "so no two halves to compare: akiec (0), bcc (1), bkl (3)." in text
    assert "Fewer than 2 generated images: mel (1), vasc (0)." in text
    assert "Neighbourhoods need more than 5 images in a set: not so in df." in text
    assert "There are no val images to say which distance is small." in text
    assert "trained on other images than this run's training split" in text
    assert json.loads((tmp_path / "quality.json").read_text())["copies"]["threshold"] is None


@pytest.mark.parametrize("num_classes", [3, 8])
def test_other_classes_are_audited_under_their_own_names(real, extractor, tmp_path, num_classes):
    classes = Classes.of([f"kind {i}" for i in range(num_classes)])
    labels = np.arange(len(real.images)) % num_classes
    val_labels = np.arange(len(real.val_images)) % num_classes
    real = dataclasses.replace(real, classes=classes, labels=labels, val_labels=val_labels)
    images = generated(others(12), [0] * 12, real.train_split)
    found = audit.audit(real, images, extractor)
    text = quality_report.write(tmp_path, [found], {})
    content = json.loads((tmp_path / "quality.json").read_text())
    assert list(content["groups"]) == [*classes.names, "overall"]
    assert list(content["copies"]["groups"]) == [*classes.names, "overall"]
    assert {pair["nearest_label"] for pair in content["copies"]["closest"]} <= {*classes.names}
    assert "| kind 2 " in text
    assert content["groups"]["kind 0"]["generated_images"] == 12


@pytest.fixture
def run(eval_with, workdir):
    """skin_jax.eval's main() with flags, about the run."""
    return lambda **chosen: eval_with(**{"workdir": workdir} | chosen)


@pytest.fixture
def folder(workdir, real, tmp_path):
    path = tmp_path / "generated"
    write_folder(path, others(12), [NV] * 8 + [DF] * 4, real.train_split)
    return path


def test_without_features_there_is_the_sliced_wasserstein_distance(run, folder, workdir, capfd):
    before = sorted(folder.rglob("*"))
    run(quality=folder)
    output = capfd.readouterr()
    out = workdir / "eval" / "quality" / "generated"
    assert f"results: {out}" in output.out
    assert "SWD x1000" in output.out
    assert "KID" not in output.out
    assert "without --weights or --features_from" in output.err
    assert "Comparing" in output.err
    assert "other images" not in output.err
    assert {path.name for path in out.iterdir()} == {
        "quality.json",
        "quality.md",
        "side_by_side.png",
    }
    content = json.loads((out / "quality.json").read_text())
    assert (content["generated"], content["run"]) == ("generated", "tiny")
    assert content["same_training_split"] is True
    assert content["features"] is content["copies"] is None
    nv = content["groups"]["nv"]["generated"]
    assert nv["kid"]["mean"] is None
    assert nv["swd"]["mean"] == pytest.approx((nv["swd_32"]["mean"] + nv["swd_16"]["mean"]) / 2)
    assert str(workdir.parent) not in (out / "quality.md").read_text()
    assert sorted(folder.rglob("*")) == before  # and its manifest still fits
    assert len(generated_lib.read(folder, HAM10000)) == 12


def test_features_of_a_run_and_images_of_a_foreign_generator(run, workdir, tmp_path, capfd):
    """The generated images are larger than the run's."""
    larger = demo.generate(demo.MIN_IMAGES, 48, 3).images[:9]
    write_folder(tmp_path / "generated", larger, [NV] * 9, "0" * 64)
    run(quality=tmp_path / "generated", features_from=workdir, out=tmp_path / "out")
    output = capfd.readouterr()
    assert "trained on other images than the training split" in output.err
    assert "closest_pairs.png" not in output.out
    text = (tmp_path / "out" / "quality.md").read_text()
    assert "the run tiny (sgan) at step 2, of images at 32x32" in text
    assert "](closest_pairs.png)" in text
    content = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert content["same_training_split"] is False
    assert content["groups"]["nv"]["generated"]["kid"]["mean"] is not None
    assert content["copies"]["val_images"] > 0


def test_several_judges_each_say_what_they_find(run, folder, workdir, tmp_path, capfd):
    other = tmp_path / "other"
    shutil.copytree(workdir, other)
    run(quality=folder, features_from=f"{workdir},{other}", out=tmp_path / "out")
    printed = capfd.readouterr().out
    content = json.loads((tmp_path / "out" / "quality.json").read_text())
    (second,) = content["other_judges"]
    assert content["features"].startswith("the run tiny ")
    assert second["features"].startswith("the run other ")
    nv = content["groups"]["nv"]
    assert second["groups"]["nv"]["generated"]["kid"] == nv["generated"]["kid"]
    assert second["groups"]["nv"]["generated"]["swd"]["mean"] is None
    assert "Nearest training images (judge 2)" in printed
    for picture in ("closest_pairs.png", "closest_pairs_2.png", "side_by_side.png"):
        assert (tmp_path / "out" / picture).exists()
    assert 0 <= content["classification_accuracy_score"]["generated"] <= 1
    overall = content["groups"]["overall"]["c2st"]
    assert overall["value"] is None  # of 12 images
    run(quality=folder, features_from=workdir, out=tmp_path / "out")
    assert not (tmp_path / "out" / "closest_pairs_2.png").exists()


def test_a_judge_that_the_generators_know_is_marked(eval_program, workdir):
    command, _ = eval_program
    opened = trained(workdir)
    assert command._networks_of_generators(opened) == {}
    with opened.config.unlocked():
        opened.config.model.weights = "/a/lite0.safetensors"
        opened.config.score = {"weights": "b/lite2"}
    notes = command._networks_of_generators(opened)
    assert notes.keys() == {"lite0.safetensors", "lite2"}
    assert "trained against this very network" in notes["lite0.safetensors"]
    assert "chosen by this very network" in notes["lite2"]


def test_refusals_are_one_sentence(run, folder, workdir, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def refused(match, **chosen):
        with pytest.raises(UserError, match=match):
            run(**{"quality": folder, "out": out} | chosen)
        assert not out.exists()

    refused("go with --quality", quality=None, weights="a.safetensors")
    refused("give --workdir=DIR", workdir=None)
    refused("goes with none of", data_dir="somewhere")
    refused("is inside .*generated, whose manifest", out=folder / "quality")
    refused("is not the work folder of a run", workdir=tmp_path)
    refused("is not the work folder of a run", features_from=tmp_path)
    refused("there is no such file; --weights is", weights=tmp_path / "absent.safetensors")
    refused("absent does not exist; give a folder", quality=tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    refused("has no manifest", quality=tmp_path / "empty")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/quality\.json: cannot be written"):
        run(quality=folder, out=tmp_path / "file")
    monkeypatch.setattr(tasks.TASKS["sgan"], "build", lambda *args: tasks.Task())
    refused("a run of its task, Task, has no features of images", features_from=workdir)
    (folder / "nv" / "3.png").write_bytes(b"no image")
    refused(r"cannot be read \(1 problem\):\n  - nv/3.png: not an image")


def test_efficientnet_finds_a_planted_copy_of_a_real_image(real_data):
    """A flipped and cropped one too, all in a generator's size."""
    weights = os.environ.get("SKIN_JAX_TEST_WEIGHTS")
    if not weights:
        pytest.skip("SKIN_JAX_TEST_WEIGHTS is not set")
    files = sorted(real_data.glob("ISIC2018_Task3_Training_Input/*.jpg"))[:170]
    pictures = np.stack([decode(file, 64) for file in files])
    train, val, fresh = np.split(pictures, [120, 160])
    planted = [train[17], cropped(train[99][:, ::-1]), np.rot90(cropped(train[110]), 3)]
    extractor = features.efficientnet_lite(
        str(Path(weights) / "tf_efficientnet_lite0.in1k.safetensors"), devices.make_mesh(None)
    )
    described = extractor(train)
    assert described.shape == (120, 1280)
    copies = audit.find_copies(np.concatenate([fresh, planted]), val, described, extractor)
    assert {pair.generated: pair.train for pair in copies.closest[:3]} == {10: 17, 11: 99, 12: 110}
    assert (copies.distances[10:] < copies.threshold).all()
