import pytest
from ml_collections import ConfigDict

from skin_jax.base import settings
from skin_jax.base.errors import UserError
from skin_jax.base.settings import Neutral, Setting, section

DECLARED = {
    "name": Setting(None, "Its name.", str),
    "steps": Setting(None, "How long.", int, low=1, grows=True),
    "on": Setting(False, "Whether."),
    "rate": Setting(0.5, "How fast.", above=0, high=1, also=("lr",)),
    "size": Setting(8, "How large.", low=1),
    "kind": Setting("a", "Which.", choices=("a", "b")),
    "names": Setting((), "Which ones.", str),
    "shares": Setting((0.5, 0.5), "How many.", float, low=0),
    "pairs": Setting((), "What for what.", tuple),
    **section("data", dir=Neutral(None, "Where.", str), size=Neutral(3, "How much.")),
}


@pytest.fixture
def config(monkeypatch) -> ConfigDict:
    monkeypatch.setitem(settings.DECLARED, "one", DECLARED)
    config = settings.defaults(DECLARED)
    config.task = "one"
    config.own = ConfigDict({"depth": 2, "free": None})
    return config


def test_defaults_have_the_declared_types(config):
    assert config.data.get_type("dir") is str
    assert config.get_type("steps") is int
    assert (config.on, config.rate, config.names) == (False, 0.5, ())


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("name", "x=y", "x=y"),
        ("name", "3", "3"),
        ("name", "None", None),
        ("steps", "40", 40),
        ("steps", "None", None),
        ("on", "true", True),
        ("on", "0", False),
        ("rate", "1e-4", 1e-4),
        ("rate", "1", 1.0),
        ("kind", "b", "b"),
        ("names", "('x','y')", ("x", "y")),
        ("names", "['x']", ("x",)),
        ("names", "x", ("x",)),
        ("names", "()", ()),
        ("shares", "(1,0.5,0)", (1, 0.5, 0)),
        ("pairs", "(('x','y'),)", (("x", "y"),)),
        ("data.dir", "/a b", "/a b"),
        ("own.depth", "5", 5),
        ("own.free", "[1]", [1]),
    ],
)
def test_texts_become_values_of_the_settings_type(config, key, text, value):
    settings.override(config, key, text)
    found = settings.flatten(config)[key]
    assert found == settings.as_in_json(value)
    assert type(found) is type(settings.as_in_json(value))
    settings.check(config)


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("steps", "many", "config.steps is 'many'; it takes a whole number"),
        ("steps", "1e4", "config.steps is '1e4'; it takes a whole number"),
        ("steps", "0", "config.steps is '0'; it must be at least 1"),
        ("size", "None", "config.size is 'None'; it takes a whole number"),
        ("size", "True", "config.size is 'True'; it takes a whole number"),
        ("rate", "fast", "config.rate is 'fast'; it takes a number"),
        ("rate", "nan", "config.rate is 'nan'; it takes a number"),
        ("rate", "0", "config.rate is '0'; it must be above 0"),
        ("on", "maybe", "config.on is 'maybe'; it takes True or False"),
        ("kind", "c", "config.kind is 'c'; it can be 'a', 'b'"),
        ("name", "", "config.name is empty; give it a value, or leave it out"),
        ("names", "(1,2)", "config.names is '(1,2)'; it takes a tuple of texts"),
        ("shares", "(0.5,", "config.shares is '(0.5,'; it takes a tuple of numbers"),
        ("shares", "(-1,2)", "config.shares is '(-1,2)'; it must be at least 0"),
        ("pairs", "('x','y')", "it takes a tuple of pairs, such as (('a','b'),)"),
        ("own.depth", "deep", "config.own.depth is 'deep'; it takes a whole number"),
    ],
)
def test_a_text_that_does_not_fit_is_one_sentence(config, key, text, words):
    before = settings.flatten(config)
    with pytest.raises(UserError) as error:
        settings.override(config, key, text)
    assert words in str(error.value)
    assert settings.flatten(config) == before


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("lr", "did you mean --config.rate?"),
        ("dir", "did you mean --config.data.dir"),
        ("data.sizes", "did you mean --config.data.size"),
        ("depth", "--config.own.depth"),
        ("size_", "--config.size"),
        ("zzzzzz", "--help has them all"),
        ("data", "--config.data is a section: give its settings, as --config.data.dir"),
    ],
)
def test_an_unknown_key_gets_its_neighbours(config, key, words):
    with pytest.raises(UserError) as error:
        settings.override(config, key, "1")
    assert words in str(error.value)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 2, True, "x", None, (0.5,)])
def test_a_value_that_does_not_fit_is_refused_by_name(config, value):
    config = ConfigDict({"task": "one", "rate": value})
    with pytest.raises(UserError, match=r"config\.rate is .*; it (must be|takes) "):
        settings.check(config)


def test_what_may_be_left_out_may_be_none_and_what_is_not_declared_is_not_looked_at(config):
    config.own.depth = -1
    config.steps = config.name = None
    settings.check(config)
    settings.check(ConfigDict({"task": "another", "rate": 5}))


def test_a_declaration_replaces_that_of_all_tasks(monkeypatch):
    monkeypatch.setattr(
        settings, "DECLARED", {None: {"a": Setting(1, "A."), "b": Setting(2, "B.")}}
    )
    settings.declare("one", {"b": Setting(3, "B.", low=3), "c.d": Setting(4, "D.")})
    assert settings.flatten(settings.defaults(settings.DECLARED["one"])) == {
        "a": 1,
        "b": 3,
        "c.d": 4,
    }
    assert settings.declared_for({"task": "one"})["b"].low == 3
    assert settings.declared_for({"task": "unknown"}).keys() == {"a", "b"}


def test_help_has_every_setting_its_value_and_what_it_takes(config):
    config.size = 5
    text = settings.described(config)
    for key in DECLARED:
        assert f"--config.{key}=" in text
    assert "--config.size=5\n      How large. (at least 1)" in text
    assert "Which. ('a', 'b')" in text
    assert text.index("general:") < text.index("data:")
    assert text.endswith("and what is in own, task")


def test_the_table_says_whose_default_is_which(monkeypatch):
    monkeypatch.setattr(settings, "DECLARED", {None: {"a": Setting(1, "A.", low=0)}})
    settings.declare("one", {"b": Setting(2, "B.")})
    settings.declare("two", {"b": Setting(3, "B."), "a": Setting(5, "A.", low=0)})
    settings.declare("three", {})
    assert settings.table(["one", "two", "three"]).splitlines()[2:] == [
        "| `a` | `1` (one, three); `5` (two) | A. (at least 0) |",
        "| `b` | `2` (one); `3` (two) | B. |",
    ]
