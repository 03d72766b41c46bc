import dataclasses
import json

import pytest

from skin_jax.base.errors import UserError
from skin_jax.data import classes
from skin_jax.data.classes import HAM10000, Classes


def test_names_that_known_data_sets_have_bring_their_titles_and_groups():
    found = Classes.of(["NV", "melanoma", "wart", "scc"])
    assert found.titles == ("melanocytic nevus", "melanoma", "wart", "squamous cell carcinoma")
    assert found.groups == ("benign", "malignant", "", "malignant")
    assert found.focus == "melanoma"
    assert found.columns == found.names == ("NV", "melanoma", "wart", "scc")
    assert (found.titled(0), found.titled(2)) == ("NV (melanocytic nevus)", "wart")
    assert Classes.of(["a", "b"]).focus is None


def test_colours_of_any_number_of_classes():
    assert len(set(Classes.of("abcdefgh").colours)) == 8
    assert len(Classes.of([f"{k}" for k in range(20)]).colours) == 20


def test_arranged():
    found = classes.arranged(["10", "9", "a10", "a9", "9"], (), None)
    assert found.names == ("9", "10", "a9", "a10")
    assert classes.arranged(["nv"], HAM10000.names, HAM10000) is HAM10000
    assert classes.arranged(["nv", "mel"], ("nv", "mel"), HAM10000).names == ("nv", "mel")
    assert classes.arranged(HAM10000.names[::-1], (), None) is HAM10000


def test_written_classes_are_read_back(tmp_path):
    assert classes.read(tmp_path) is HAM10000  # a run of before there was a choice
    for written in (HAM10000, Classes.of(["a b", "é", '"c"'])):
        classes.write(written, tmp_path)
        assert classes.read(tmp_path) == written


@pytest.mark.parametrize(
    "change",
    [{"names": ["a"]}, {"columns": ["a", "x"]}, {"titles": 3}, {"focus": None, "groups": None}],
)
def test_damaged_classes(tmp_path, change):
    content = dataclasses.asdict(Classes.of(["a", "b"])) | change
    (tmp_path / "classes.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"classes\.json is damaged"):
        classes.read(tmp_path)
