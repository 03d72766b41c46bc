"""skin_jax.export: a folder to pass on, which commands take for a work folder."""

import dataclasses
import json
import shutil
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from skin_jax import api, exports, load
from skin_jax import config as config_lib
from skin_jax.base import devices
from skin_jax.base.errors import UserError
from skin_jax.data import demo
from skin_jax.data.classes import HAM10000
from skin_jax.eval import generation
from skin_jax.exports import functions
from skin_jax.models import pretrained
from skin_jax.report import figures
from skin_jax.tasks.augment import keys_of
from skin_jax.tasks.declared import classifier, dcgan
from skin_jax.training import checkpoints as checkpoint_lib
from skin_jax.training import shipped
from skin_jax.training.run import fitted_on, reopen, ship, start, trained

pytestmark = pytest.mark.xdist_group("export")  # one worker makes the fixtures, once

SIZE = 32


def own_network() -> None:
    """Code of the user's own."""


@pytest.fixture(scope="module")
def folder(small_gan, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("zoo") / "gan"
    load(small_gan).export(out)
    return out


@pytest.fixture(scope="module")
def class_gans(tmp_path_factory) -> tuple[Path, Path]:
    """Two class generators of which one alone was scored, at step 2 of 6; and the export."""
    config = dcgan.defaults()
    config.update_from_flattened_dict(
        {
            "classes": ("bcc", "df"),
            "batch_size": 8,
            "data.demo_images": demo.MIN_IMAGES,
            "data.image_size": SIZE,
            "data.pipeline": "device",
            "model.width": 4,
            "sharding.num_devices": 1,
        }
    )
    root = tmp_path_factory.mktemp("class_gans")
    experiment = start(config, root / "run")
    early, late = (jax.jit(experiment.task.init)(jax.random.key(step)) for step in (2, 6))
    scores, steps = np.array([0.1, np.inf], np.float32), np.array([2, 0], np.int32)
    with checkpoint_lib.Checkpoints(root / "run" / "checkpoints") as checkpoints:
        best = early.gans.generator.variables
        checkpoints.save(6, late.replace(best=best, best_score=scores, best_step=steps), None)
    load(root / "run").export(root / "zoo")
    return root / "run", root / "zoo"


@pytest.mark.parametrize("ability", ["predict", "features", "explain"])
def test_an_export_judges_images_as_its_run_does(small_gan, folder, ability):
    images = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), np.uint8)
    more = (np.arange(4, dtype=np.int32),) if ability == "explain" else ()
    found = []
    for workdir in (small_gan, folder):
        run = trained(workdir)
        state, step = run.best_state(devices.make_mesh(1))
        found.append((np.asarray(run.ability(ability)(state, images, *more)), step))
    assert found[0][1] == found[1][1]
    np.testing.assert_allclose(found[1][0], found[0][0], atol=5e-3)
    assert found[0][0].std() > 0


def test_an_export_has_no_optimizer_and_half_the_precision(small_gan, tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "_LARGE", 100)
    load(small_gan).export(tmp_path / "zoo")
    with shipped.safe_open(tmp_path / "zoo" / shipped.WEIGHTS, "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    state, _ = trained(small_gan).best_state(devices.make_mesh(1))
    networks = jax.tree.leaves(state.averaged)
    assert len(tensors) <= len(networks) < len(jax.tree.leaves(state))
    assert not any("opt_state" in name for name in tensors)
    for name, array in tensors.items():
        half = array.size >= 100 and "batch_stats" not in name
        assert array.dtype == (np.float16 if half else np.float32), name
    assert len({array.dtype for array in tensors.values()}) == 2


def test_statistics_out_of_half_precision_survive(small_gan, tmp_path):
    run = trained(small_gan)
    state, step = run.best_state(devices.make_mesh(1))
    huge = jax.tree.map(lambda leaf: np.full(leaf.shape, 1e6, leaf.dtype), state)
    shipped.write(tmp_path, shipped.Content(shipped.needed(run.task, huge, SIZE), None, step))
    content = shipped.read(tmp_path, run.task, len(run.classes))
    for leaf in jax.tree.leaves(content.state):
        assert (leaf == np.full((), 1e6, leaf.dtype)).all()


def test_class_generators_are_the_best_or_the_newest_ones(class_gans):
    drawn = [trained(workdir).drawn_from(devices.make_mesh(1), None) for workdir in class_gans]
    for original, copy in zip(*map(jax.tree.leaves, drawn), strict=True):
        np.testing.assert_allclose(copy, original, atol=1e-3)
    bcc, df = 1, 3
    assert drawn[1].steps[[bcc, df]].tolist() == [2, 6]
    assert drawn[1].scored[[bcc, df]].tolist() == [True, False]


def test_an_export_generates(class_gans, tmp_path, capsys):
    for workdir, out in zip(class_gans, (tmp_path / "run", tmp_path / "zoo"), strict=True):
        generation.generate(workdir, out, generation.Amount(2), figures.image_grid)
    rows = [(out / "manifest.csv").read_text().splitlines() for out in tmp_path.iterdir()]
    assert [len(each) for each in rows] == [5, 5]
    assert fitted_on(class_gans[0]) == fitted_on(class_gans[1])  # it may be trained with, as there
    for image in sorted((tmp_path / "run").glob("*/*_0_*.png")):
        pixels = [
            np.asarray(Image.open(root / image.relative_to(tmp_path / "run")), float)
            for root in (tmp_path / "run", tmp_path / "zoo")
        ]
        np.testing.assert_allclose(pixels[0], pixels[1], atol=2)


def test_an_export_names_no_folder_of_the_machine(small_gan, tmp_path):
    run = trained(small_gan)
    run.config.data.dir, run.config.data.cache_dir = "/secret/photos", "/secret/cache"
    ship(run, tmp_path / "zoo")
    assert "secret" not in (tmp_path / "zoo" / "config.json").read_text()


def test_figures_of_another_checkpoint_are_not_in_the_card(small_gan, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(small_gan, source)
    path = source / "eval" / "test" / "metrics.json"
    measured = json.loads(path.read_text())
    for step, there in ((measured["step"], True), (measured["step"] + 1, False)):
        path.write_text(json.dumps(measured | {"step": step}))
        load(source).export(tmp_path / "zoo")
        card = (tmp_path / "zoo" / "README.md").read_text()
        assert ("balanced accuracy" in card) is there
    val = source / "eval" / "val" / "metrics.json"
    val.parent.mkdir()
    val.write_text(json.dumps(measured | {"split": "val"}))
    load(source).export(tmp_path / "zoo")
    card = (tmp_path / "zoo" / "README.md").read_text()
    assert "Results on the val split" in card
    assert "chosen by them" in card


def test_what_an_export_cannot_do_is_said(small_gan, folder, class_gans, tmp_path):
    config = config_lib.read(folder)
    with pytest.raises(UserError, match="cannot be trained any further"):
        api.train(config, folder)
    with pytest.raises(UserError, match="--data_dir"):
        reopen(folder)
    for workdir in (folder, class_gans[1]):
        with pytest.raises(UserError, match="step 6 cannot be chosen"):
            generation.generate(
                workdir, tmp_path / "g", generation.Amount(1), figures.image_grid, step=6
            )
    with pytest.raises(UserError, match="holds other files"):
        load(small_gan).export(small_gan)
    run = trained(small_gan)
    with run.config.unlocked():
        run.config.model.network = own_network
    with pytest.raises(UserError, match=r"code of its own as config\.model\.network"):
        ship(run, tmp_path / "own")


@pytest.fixture(scope="module")
def lite(tmp_path_factory) -> Path:
    """The work folder of a small EfficientNet-Lite0 with random weights."""
    config = classifier.defaults()
    config.update_from_flattened_dict(
        {
            "batch_size": 8,
            "data.demo_images": demo.MIN_IMAGES,
            "data.image_size": SIZE,
            "data.pipeline": "device",
            "model.name": "efficientnet_lite0",
            "model.weights": "none",
            "model.width_multiplier": 0.25,
            "sharding.num_devices": 1,
        }
    )
    workdir = tmp_path_factory.mktemp("lite") / "run"
    state = jax.jit(start(config, workdir).task.init)(jax.random.key(0))
    with checkpoint_lib.Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(1, state, None)
    return workdir


def images_of(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def test_stablehlo_predicts_without_our_code_on_any_platform(small_gan, tmp_path):
    file = tmp_path / "model.stablehlo"
    load(small_gan).export(file)
    exported = jax.export.deserialize(bytearray(file.read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    for count in (1, 3):
        expected = load(small_gan).predict(images_of(count))
        np.testing.assert_allclose(exported.call(images_of(count)), expected, atol=1e-6)
    metadata = json.loads(zipfile.ZipFile(file).read(exports.METADATA))
    assert metadata["classes"] == list(HAM10000.names)


def test_stablehlo_generates(small_gan, class_gans, tmp_path):
    for workdir, label in ((small_gan, ()), (class_gans[0], (np.int32(3),))):
        file = tmp_path / f"{workdir.parent.name}.stablehlo"
        run = load(workdir)
        run.export(file, part="generate")
        exported = jax.export.deserialize(bytearray(file.read_bytes()))
        key = jax.random.key(5)
        task = trained(workdir).task
        key = jax.random.fold_in(key, 3) if task.conditional else key
        noise = task.noise(keys_of(key, np.arange(2, dtype=np.uint32)))
        expected = run.generate(3 if label else None, 2, seed=5)
        np.testing.assert_allclose(exported.call(noise, *label), expected.astype(int), atol=1)


def test_weights_by_the_names_of_timm_are_read_back(lite, tmp_path):
    file = tmp_path / "model.safetensors"
    load(lite).export(file)
    run = trained(lite)
    network, variables = run.ability("judge")(run.best_state(devices.make_mesh(1))[0])
    empty = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)
    found = pretrained.load(empty, network, str(file), head=True)
    jax.tree.map(np.testing.assert_array_equal, found, jax.device_get(variables))
    with shipped.safe_open(file, "numpy") as tensors:
        metadata = {key: json.loads(value) for key, value in tensors.metadata().items()}
    assert metadata["classes"] == list(HAM10000.names)
    assert metadata["mean"] == [0.5, 0.5, 0.5]


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
def test_tflite_agrees(small_gan, class_gans, tmp_path):
    tensorflow = pytest.importorskip("tensorflow")
    images = images_of(4)

    def output(file: Path, **given: np.ndarray) -> np.ndarray:
        interpreter = tensorflow.lite.Interpreter(model_content=file.read_bytes())
        interpreter.allocate_tensors()
        for detail in interpreter.get_input_details():
            interpreter.set_tensor(detail["index"], given[detail["name"]])
        interpreter.invoke()
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])

    run = load(small_gan)
    expected, sizes = run.predict(images[:1]), []
    for precision, atol in (("float32", 1e-5), ("float16", 1e-3), ("int8", 0.1)):
        file = tmp_path / f"{precision}.tflite"
        metadata = run.export(file, precision=precision, images=images)
        np.testing.assert_allclose(output(file, images=images[:1]), expected, atol=atol)
        sizes.append(file.stat().st_size)
        assert json.loads(zipfile.ZipFile(file).read(exports.METADATA)) == metadata
    assert sizes[2] < sizes[1] < 0.7 * sizes[0]
    assert "of the 4 images keep their class" in metadata["int8"]

    file = tmp_path / "generator.tflite"
    load(class_gans[0]).export(file)
    function = functions.of(trained(class_gans[0]), "generate")
    noise, label = np.full((1, function.inputs["noise"].shape[1]), 0.1, np.float32), np.int32(3)
    found = output(file, noise=noise, label=np.asarray(label))
    np.testing.assert_allclose(found, np.asarray(function.call(noise, label)).astype(int), atol=1)


@pytest.mark.parametrize("ability", ["predict", "generate"])
def test_onnx_agrees(lite, class_gans, tmp_path, ability):
    pytest.importorskip("jax2onnx")
    runtime = pytest.importorskip("onnxruntime")
    workdir, file = lite if ability == "predict" else class_gans[0], tmp_path / "model.onnx"
    metadata = load(workdir).export(file)
    session = runtime.InferenceSession(file.read_bytes())
    function = functions.of(trained(workdir), ability)
    for count in (1, 3):
        if ability == "predict":
            given, atol = {"images": images_of(count)}, 1e-5
        else:
            noise = np.random.default_rng(count).uniform(-1, 1, (count, 100)).astype(np.float32)
            given, atol = {"noise": noise, "label": np.asarray(3, np.int32)}, 1
        expected = np.asarray(function.call(*given.values())).astype(float)
        (found,) = session.run([function.output], given)
        np.testing.assert_allclose(found.astype(float), expected, atol=atol)
    known = session.get_modelmeta().custom_metadata_map
    assert {key: json.loads(value) for key, value in known.items()} == metadata


@pytest.mark.parametrize(
    ("out", "more", "said"),
    [
        ("model.pt", {}, r"\.pt is none of \.onnx, "),
        ("model.safetensors", {}, "Sgan, has no network that other programs know"),
        ("folder", {"part": "predict"}, "only functions"),
        ("model.onnx", {"precision": "int8"}, "only a .tflite can"),
        ("model.tflite", {"precision": "int8"}, "give their folder with --images"),
    ],
)
def test_an_export_that_cannot_be_is_refused(small_gan, tmp_path, out, more, said):
    with pytest.raises(UserError, match=said):
        load(small_gan).export(tmp_path / out, **more)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["model.onnx", "folder"])
def test_an_export_that_could_not_be_written_is_refused_before_the_work(small_gan, tmp_path, name):
    (tmp_path / "file").touch()
    run = dataclasses.replace(trained(small_gan), task=None)  # it cannot begin
    with pytest.raises(UserError, match=rf"file/{name}.*: cannot be written"):
        exports.write(run, tmp_path / "file" / name)


def test_onnx_without_its_package_says_what_to_install(small_gan, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(UserError, match=r"pip install 'skin_jax\[export\]'"):
        load(small_gan).export(tmp_path / "model.onnx")


def test_damage_is_found(folder, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    weights = bytearray((damaged / shipped.WEIGHTS).read_bytes())
    weights[-1] ^= 1
    for content in (weights, weights[:-8]):
        (damaged / shipped.WEIGHTS).write_bytes(content)
        with pytest.raises(
            UserError, match=r"model\.safetensors is not the file that the run wrote"
        ):
            trained(damaged)
        run = trained(folder)
        with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
            shipped.read(damaged, run.task, len(run.classes))
