import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from skin_jax import config as config_lib
from skin_jax import tasks
from skin_jax.base import settings
from skin_jax.base.errors import UserError
from skin_jax.data.splits import NUM_FOLDS
from skin_jax.tasks.classifier import MODELS
from skin_jax.tasks.declared import classifier, dcgan, sgan

ROOT = Path(__file__).parents[1]
TASKS = pytest.mark.parametrize("task", [sgan, dcgan, classifier], ids=lambda task: task.NAME)
OWN = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


def changed(**changes) -> ConfigDict:
    config = sgan.defaults()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


def test_written_configuration_reads_back_equal(tmp_path):
    config = changed(data__fold=3, data__dir="x")
    config_lib.write(config, tmp_path)
    assert config_lib.flatten(config_lib.read(tmp_path)) == config_lib.flatten(config)
    config_lib.check_resumable(config_lib.read(tmp_path), config, tmp_path)


def test_a_run_from_before_a_setting_was_declared_has_its_default(tmp_path):
    content = sgan.defaults().to_dict()
    for key in ("table", "label_column", "classes", "rename"):
        del content["data"][key]
    (tmp_path / config_lib.FILE_NAME).write_text(json.dumps(content))
    read = config_lib.read(tmp_path)
    assert (read.data.table, read.data.classes) == (None, ())
    config_lib.check_resumable(read, sgan.defaults(), tmp_path)
    flat = config_lib.flatten(content)
    assert config_lib.differences(flat, config_lib.flatten(sgan.defaults())) == []
    (phrase,) = config_lib.differences(flat, config_lib.flatten(changed(data__classes=("a", "b"))))
    assert phrase == "config.data.classes: [] there, ['a', 'b'] now"


def written(folder: Path, **changes) -> dict:
    """The content of `config.json` of a run with one file of its own."""
    (folder / "splits.csv").write_text("image,split\n")
    config_lib.write(changed(**changes), folder, ["splits.csv"])
    return json.loads((folder / config_lib.FILE_NAME).read_text())


def test_files_that_are_not_those_of_the_run_are_refused_by_name(tmp_path):
    content, path = written(tmp_path), tmp_path / config_lib.FILE_NAME
    config_lib.read(tmp_path)
    path.write_text(json.dumps(content | {"seed": 1}))
    with pytest.raises(UserError, match=r"config\.json was edited"):
        config_lib.read(tmp_path)
    content["data"]["cache_dir"] = "/elsewhere"  # changes no result
    path.write_text(json.dumps(content))
    assert config_lib.read(tmp_path).data.cache_dir == "/elsewhere"
    (tmp_path / "splits.csv").write_text("image,split\na,test\n")
    with pytest.raises(UserError, match=r"splits\.csv is not the file that the run wrote"):
        config_lib.read(tmp_path)
    (tmp_path / "splits.csv").unlink()
    with pytest.raises(UserError, match=r"splits\.csv cannot be read"):
        config_lib.read(tmp_path)


def test_the_identity_of_a_run_stays_when_it_is_resumed(tmp_path):
    first = written(tmp_path)
    config_lib.write(changed(num_epochs=48), tmp_path, None)
    assert config_lib.read(tmp_path).num_epochs == 48
    identity = json.loads((tmp_path / config_lib.FILE_NAME).read_text())["identity"]
    assert identity["run"] == first["identity"]["run"] == config_lib.run_in(tmp_path)
    assert identity["files"] == first["identity"]["files"]
    other = tmp_path / "other"
    other.mkdir()
    assert written(other)["identity"] == first["identity"]
    assert written(other, seed=1)["identity"]["run"] != first["identity"]["run"]


def test_a_run_of_a_version_without_identities_stays_one(tmp_path):
    (tmp_path / config_lib.FILE_NAME).write_text(config_lib.to_json(changed(seed=3)))
    assert config_lib.read(tmp_path).seed == 3
    config_lib.write(changed(seed=3), tmp_path, None)
    assert config_lib.run_in(tmp_path) is None
    assert config_lib.read(tmp_path).seed == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"data__dir": "/elsewhere"},
        {"data__on_bad_image": "skip"},
        {"profile": True},
        {"watchdog_seconds": 0},
        {"distributed__num_processes": 2},
        {"data__synthetic": "/elsewhere"},
        {"data__pipeline": "device"},
        {"data__cache_dir": "/tmp"},
        {"log__every_steps": 1},
        {"checkpoint__every_steps": 1},
        {"sharding__num_devices": 2},
        {"eval_batch_size": 7},
        {"num_epochs": 48},
    ],
)
def test_keys_that_do_not_change_a_result_may_differ_on_resume(tmp_path, changes):
    config_lib.check_resumable(changed(), changed(**changes), tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"batch_size": 32},
        {"data__split_seed": 1},
        {"data__image_size": 64},
        {"optimizer__learning_rate": 1e-3},
        {"num_epochs": 12},
        {"num_steps": 1},
        {"precision": "bf16"},
        {"data__synthetic_ratio": 0.5},
        {"data__oversample_to": 100},
        {"data__rename": (("a", "b"),)},
        {"steps_per_dispatch": 2},
    ],
)
def test_keys_that_change_a_result_are_refused_by_name(tmp_path, changes):
    key = next(iter(changes)).replace("__", ".")
    with pytest.raises(UserError, match=rf"config\.{key}: .* there, .* now"):
        config_lib.check_resumable(changed(), changed(**changes), tmp_path)


def test_a_run_with_a_schedule_that_ends_cannot_become_longer(tmp_path):
    old = changed(optimizer__schedule="cosine")
    with pytest.raises(UserError, match="num_epochs"):
        config_lib.check_resumable(
            old, changed(optimizer__schedule="cosine", num_epochs=48), tmp_path
        )


def test_every_difference_is_named(tmp_path):
    with pytest.raises(UserError, match=r"config\.batch_size.*config\.seed"):
        config_lib.check_resumable(changed(), changed(seed=1, batch_size=8), tmp_path)


def test_a_folder_without_a_run_and_a_damaged_one_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="not the work folder of a run"):
        config_lib.read(tmp_path)
    sound = sgan.defaults().to_dict()
    wrong = ({"batch_size": "many"}, {"batch_size": None}, {"data": 3}, {"data": {"dir": []}})
    wrong += ({"identity": 3}, {"identity": {}}, {"identity": {"settings": "", "free": 3}})
    for damaged in ("{", "[]", "{}", "[" * 10**5, *(json.dumps(sound | own) for own in wrong)):
        (tmp_path / config_lib.FILE_NAME).write_text(damaged)
        with pytest.raises(UserError, match="damaged"):
            config_lib.read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, r"config\.seed is -1; it must be at least 0"),
        ({"seed": 2**32}, r"config\.seed is 4294967296; .* at most 4294967295"),
        ({"data__split_seed": 2**32}, r"config\.data\.split_seed is 4294967296"),
        ({"data__fold": 5}, r"config\.data\.fold is 5; .* at most 4"),
        ({"data__fold": -1}, r"config\.data\.fold is -1; it must be at least 0"),
        (
            {"optimizer__schedule": "linear"},
            r"schedule is .linear.; it can be .constant",
        ),
        ({"optimizer__learning_rate": 0.0}, r"learning_rate is 0\.0; it must be above 0"),
        ({"optimizer__warmup_steps": -1}, r"config\.optimizer\.warmup_steps is -1"),
        ({"loss__pseudo_label_threshold": 1.5}, r"threshold is 1\.5; it must be at most 1"),
        ({"sharding__num_devices": 0}, r"config\.sharding\.num_devices is 0"),
        ({"distributed__num_processes": 0}, r"num_processes is 0; it must be at least 1"),
        ({"distributed__heartbeat_timeout_seconds": 0}, r"seconds is 0; it must be at least 1"),
        ({"batch_size": None}, r"config\.batch_size is None; it takes a whole number"),
        (
            {"data__classes": (1, 2)},
            r"config\.data\.classes is \[1, 2\]; it takes a tuple of texts",
        ),
        ({"data__rename": ("a", "b")}, r"a tuple of pairs, such as \(\('a','b'\),\)"),
        ({"num_epochs": 0}, r"config\.num_epochs is 0"),
        ({"num_steps": 0}, r"config\.num_steps is 0"),
        ({"num_steps": -5}, r"config\.num_steps is -5"),
        ({"steps_per_dispatch": 0}, r"config\.steps_per_dispatch is 0"),
        ({"log__every_steps": 0}, r"config\.log\.every_steps is 0"),
        ({"checkpoint__every_steps": 0}, r"config\.checkpoint\.every_steps is 0"),
        ({"data__image_size": -32}, r"config\.data\.image_size is -32"),
        ({"data__split": "random"}, r"config\.data\.split is 'random'; it can be 'lesion'"),
        ({"data__sampling": "even"}, r"config\.data\.sampling is 'even'"),
        ({"data__pipeline": "torch"}, r"config\.data\.pipeline is 'torch'; .*'auto'"),
        ({"data__on_bad_image": "hide"}, r"config\.data\.on_bad_image is 'hide'"),
        ({"data__split_fractions": ("0.7", "0.1", "0.2")}, r"a tuple of numbers"),
        ({"data__dir": ""}, r"config\.data\.dir is empty"),
        ({"data__synthetic": ""}, r"config\.data\.synthetic is empty"),
        ({"data__oversample_to": 0}, r"config\.data\.oversample_to is 0; it must be at least 1"),
        ({"data__synthetic_ratio": 1.0}, r"synthetic_ratio needs generated images"),
        (
            {"data__synthetic": "g", "data__synthetic_ratio": -1.0},
            r"config\.data\.synthetic_ratio is -1\.0; it must be at least 0",
        ),
        (
            {"data__synthetic": "g", "data__synthetic_ratio": float("nan")},
            r"config\.data\.synthetic_ratio is nan",
        ),
        (
            {"data__synthetic": "g", "data__synthetic_ratio": float("inf")},
            r"config\.data\.synthetic_ratio is inf",
        ),
        (
            {"data__synthetic": "g", "data__oversample_to": 9},
            r"oversample_to is the control of config\.data\.synthetic.*give one of them",
        ),
        (
            {"data__sampling": "balanced", "data__oversample_to": 9},
            r"oversample_to has no place next to .*'balanced'.*give one of them",
        ),
    ],
)
def test_settings_out_of_range_name_their_key(changes, message):
    with pytest.raises(UserError, match=message):
        config_lib.validate(changed(**changes))


@TASKS
def test_the_defaults_are_valid_and_all_are_declared(task):
    config = task.defaults()
    config_lib.validate(config)
    assert config.task == task.NAME
    assert config_lib.flatten(config).keys() == settings.DECLARED[task.NAME].keys()


@pytest.mark.parametrize("file", [f"{name}{v}" for name in OWN for v in ("", ":smoke")])
def test_the_configurations_that_come_with_the_package_are_valid(file):
    config = config_lib.load(file)
    if "arms" not in config:
        config_lib.validate(config)
        assert config.task in tasks.TASKS


def test_what_is_declared_twice_is_the_same():
    assert config_lib.COMMON["data.fold"].high == NUM_FOLDS - 1
    assert all(name in settings.DECLARED["classifier"]["model.name"].help for name in MODELS)
    assert settings.DECLARED.keys() >= tasks.TASKS.keys()


def test_tf_without_tensorflow_names_the_way_out(monkeypatch):
    monkeypatch.setattr(config_lib.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--config\.data\.pipeline=device"):
        config_lib.validate(changed(data__pipeline="tf"))


@TASKS
def test_the_smoke_variant_is_small_saves_three_times_and_needs_no_weights(task):
    config = task.defaults()
    if "weights" in config.model:
        config.model.weights = "hf:timm/resnet50.a1_in1k"
    before = set(config_lib.flatten(config))
    config_lib.for_variant(config, "smoke", task.smoke)
    config_lib.validate(config)
    assert set(config_lib.flatten(config)) == before
    assert config.num_steps / config.eval_every_steps > 3
    assert config.data.image_size == 32
    assert config.model.get("weights", "none") == "none"


@pytest.mark.parametrize("name", ["resnet50", "densenet121", "efficientnet_lite0"])
def test_the_classifiers_start_from_pretrained_weights_that_the_command_line_can_take_away(name):
    config = config_lib.load(name)
    assert config.model.name == name
    assert config.model.weights.startswith("hf:timm/")
    config.update_from_flattened_dict({"model.weights": "none"})


def test_the_config_of_the_plain_network_starts_from_scratch():
    for file in ("classifier", "classifier:smoke"):
        config = config_lib.load(file)
        config_lib.validate(config)
        assert (config.model.name, config.model.weights) == ("cnn", "none")
        assert config.optimizer.backbone_multiplier == 1.0


def test_unknown_variant_names_the_choices():
    with pytest.raises(UserError, match=r"no variant 'smok' .* ':smoke'"):
        config_lib.for_variant(sgan.defaults(), "smok", sgan.smoke)


def test_paths_become_absolute_but_names_of_weights_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = classifier.defaults()
    config.data.dir, config.model.weights = "images", "lite0.safetensors"
    config.data.synthetic = "generated"
    config_lib.normalize(config)
    assert config.data.synthetic == str(tmp_path / "generated")
    assert config.data.dir == str(tmp_path / "images")
    assert config.model.weights == str(tmp_path / "lite0.safetensors")
    for name in ("none", "hf:timm/resnet50.a1_in1k"):
        config.model.weights = name
        config_lib.normalize(config)
        assert config.model.weights == name
    gan = sgan.defaults()
    config_lib.normalize(gan)
    assert gan.data.dir is None
    assert gan.data.synthetic is None


def test_a_configuration_is_found_by_its_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file in ("demo", "demo.py", "configs/demo.py"):
        assert config_lib.load(f"{file}:smoke").num_steps == 40
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "demo.py").write_text("def get_config(): return 'mine'\n")
    assert config_lib.load("configs/demo.py") == "mine"
    assert config_lib.load("demo") != "mine"
    for file in ("demi", "configs/demi.py", "/nowhere/configs/demo.py"):
        with pytest.raises(UserError, match=rf"no file {file} in .*skin_jax itself has .*demo"):
            config_lib.load(file)


def test_the_documents_have_the_declared_settings():
    text = (ROOT / "docs" / "settings.md").read_text()
    table = text.partition("<!-- settings -->\n")[2].partition("\n<!-- end of settings -->")[0]
    declared = settings.table(["sgan", "dcgan", "projected", "classifier"])
    assert table == declared, "`make settings` writes the table"
