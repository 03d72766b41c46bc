import pytest
from absl import flags

from skin_jax import config as config_lib
from skin_jax.base.errors import UserError
from skin_jax.data import reading
from skin_jax.data.reading import Reading
from skin_jax.training.run import load_examples


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"classes": "mel"}, "data.classes is 'mel'; it takes names"),
        ({"classes": (1, 2)}, "data.classes is"),
        ({"classes": ("a", "a")}, "names a class twice"),
        ({"rename": ("a", "b")}, "data.rename is"),
        ({"rename": (("a", "b", "c"),)}, "it takes pairs such as"),
        ({"rename": (("a", "b"), ("a", "c"))}, "one name two new ones"),
        ({"label_column": "dx"}, "needs a table; give it with data.table"),
    ],
)
def test_what_makes_no_sense_is_refused(given, words):
    with pytest.raises(UserError, match=words):
        Reading(**given)


def test_of_a_configuration(tmp_path):
    config = config_lib.base()
    assert Reading.of(config.data) == Reading()
    config.data.update(table="t.csv", classes=("b", "a"), rename=(("x", "a"),), group_column="g")
    expected = Reading("t.csv", group_column="g", classes=("b", "a"), rename=(("x", "a"),))
    assert Reading.of(config.data) == expected
    config.task, config.model = "sgan", {}
    config_lib.write(config, tmp_path)
    assert Reading.of(config_lib.read(tmp_path).data) == expected
    # A run of before the settings were there.
    old = {key: value for key, value in config.data.to_dict().items() if key in ("dir", "split")}
    assert Reading.of(old) == Reading()


def test_settings_of_the_data_are_compared_when_a_run_is_resumed(tmp_path):
    config = config_lib.base()
    config.data.rename = (("x", "a"),)
    config.task, config.model = "sgan", {}
    config_lib.write(config, tmp_path)
    before, after = (config_lib.flatten(c) for c in (config_lib.read(tmp_path), config))
    assert config_lib.differences(before, after) == []
    assert len(config_lib.differences(before, after | {"data.rename": []})) == 1
    assert len(config_lib.differences(before, after | {"data.table": "t.csv"})) == 1
    del before["data.rename"], before["data.classes"]
    assert config_lib.differences(before, after | {"data.rename": []}) == []


@pytest.mark.parametrize("setting", [{"classes": ("nv",)}, {"table": "t.csv"}])
def test_the_demo_has_its_own_classes(setting):
    config = config_lib.base()
    config.data.update(demo_images=100, image_size=32, **setting)
    with pytest.raises(UserError, match="are about a folder of images"):
        load_examples(config)


def test_the_place_of_a_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("t.csv", "data/u.csv"):
        (tmp_path / name).touch()
    assert reading.place("t.csv", "data") == str(tmp_path / "t.csv")
    assert reading.place("data/u.csv", "data") == "u.csv"
    assert reading.place("u.csv", "data") == "u.csv"
    assert reading.place("nowhere.csv", None) == "nowhere.csv"


def test_flags(monkeypatch):
    own = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", own)
    for kind in ("string", "list"):
        define = getattr(flags, f"DEFINE_{kind}")
        monkeypatch.setattr(
            flags,
            f"DEFINE_{kind}",
            lambda *args, define=define, **kwargs: define(*args, flag_values=own, **kwargs),
        )
    reading.define_flags()
    own(["x"])
    assert reading.from_flags() == Reading()
    own(["x", "--table=t.csv", "--classes=b,a", "--rename=x=a,y=a"])
    rename = (("x", "a"), ("y", "a"))
    assert reading.from_flags() == Reading("t.csv", classes=("b", "a"), rename=rename)
    own(["x", "--rename=x"])
    with pytest.raises(UserError, match="give OLD=NEW"):
        reading.from_flags()
