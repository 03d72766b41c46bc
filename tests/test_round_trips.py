"""Tables and manifests that are written are read back as they were, or refused at writing."""

import dataclasses
import math
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skin_jax import config as config_lib
from skin_jax.base import csvs
from skin_jax.base.errors import UserError
from skin_jax.base.files import write_atomically
from skin_jax.data import classes as classes_lib
from skin_jax.data import examples, generated, splits
from skin_jax.data.classes import HAM10000, Classes
from skin_jax.data.examples import Record
from skin_jax.data.generated import Generated
from skin_jax.eval import reader_items, tables
from skin_jax.tasks.declared import sgan


def _encodes(name):
    try:
        return bool(os.fsencode(name))
    except UnicodeEncodeError:
        return False


ODD = st.sampled_from("a0 ,;\t\"'\n\r\x00\x1f\x85\u2028\ufeff\udc80é皮|\\#=-./")
CELLS = st.text(st.characters(exclude_categories=()), max_size=12) | st.text(ODD, max_size=6)
IDS = st.lists(CELLS.filter(bool), min_size=1, max_size=5, unique=True)
FILE_NAMES = CELLS.filter(lambda name: not {"/", "\0"} & {*name} and _encodes(name))
quick = settings(
    max_examples=60,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def at(tmp_path_factory):
    return tmp_path_factory.mktemp("at")


def written(write, *given):
    """Whether a writer took what it was given; else it refused it in one sentence."""
    try:
        write(*given)
    except UserError:
        return False
    return True


@quick
@given(st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(CELLS, min_size=n, max_size=n))))
def test_tables(at, rows):
    if written(lambda: write_atomically(at / "table.csv", csvs.text(rows))):
        header, found = csvs.parse((at / "table.csv").read_bytes(), [])
        assert [list(header), *(list(row.values.values()) for row in found)] == (rows or [[]])


@quick
@given(IDS, CELLS, st.data())
def test_splits(at, ids, lesion, data):
    labels = data.draw(st.lists(st.integers(0, 6), min_size=len(ids), max_size=len(ids)))
    records = [Record(i, label, lesion) for i, label in zip(ids, labels, strict=True)]
    sides = np.array([splits.SPLITS[label % 3] for label in labels])
    if written(splits.write, at / "splits.csv", records, sides, HAM10000):
        assert splits.read(at / "splits.csv", records, HAM10000)[0].tolist() == sides.tolist()
        assert splits.lesion_ids(at / "splits.csv") == dict.fromkeys(ids, lesion)


@quick
@given(IDS, st.lists(CELLS, min_size=2, max_size=4, unique=True), st.data())
def test_predictions(at, ids, names, data):
    if classes_lib.name_problems(names):  # refused when the data are read
        names = ["benign", "malignant"]
    rows = st.lists(st.floats(0, 1), min_size=len(names), max_size=len(names))
    scores = np.array(data.draw(st.lists(rows, min_size=len(ids), max_size=len(ids))))
    classes = Classes.of(names)
    if written(tables.write_predictions, at / "p.csv", ids, scores, classes):
        found = tables.read_predictions(at / "p.csv", classes)
        assert found.image_ids == ids
        np.testing.assert_array_equal(found.probabilities, scores)


@quick
@given(
    st.lists(FILE_NAMES, min_size=1, max_size=4, unique=True), CELLS.filter(bool), st.floats(0, 1)
)
def test_manifests(names, run, confidence):
    rows = [
        Generated(f"mel/{name}.png", "mel", n, confidence, 0, 4, run, "0" * 64)
        for n, name in enumerate(names)
    ]
    with tempfile.TemporaryDirectory() as new:
        at = Path(new)
        (at / "mel").mkdir()
        for row in rows:
            (at / row.image).touch()
        if written(generated.write, at, rows):
            assert generated.read(at, HAM10000) == rows


@quick
@given(st.lists(st.tuples(CELLS, CELLS.filter(str.strip)), min_size=1, max_size=4))
def test_lists_of_what_was_left_out(at, rows):
    examples.write_skipped(at / "skipped.csv", rows)  # the end of a command: it never refuses
    _, found = csvs.parse((at / "skipped.csv").read_bytes(), [])
    assert len(found) == len(rows)


@quick
@given(st.lists(CELLS, min_size=1, max_size=4, unique=True))
def test_classes_and_configurations(at, names):
    classes_lib.write(Classes.of(names), at)
    assert classes_lib.read(at).names == tuple(names)
    config = sgan.defaults()
    config.data.dir, config.data.classes = names[0], tuple(names)
    config_lib.write(config, at)
    found = config_lib.read(at)
    assert (found.data.dir, tuple(found.data.classes)) == (names[0], tuple(names))


@quick
@given(CELLS, CELLS, st.dictionaries(CELLS, CELLS, max_size=3))
def test_keys_of_reader_studies(at, code, image, facts):
    item = reader_items.Item(generated=True, label="mel", image=image)
    items = {code: item, f"{code}2": dataclasses.replace(item, generated=False)}
    key = reader_items.Key("study", HAM10000.names, False, items, facts)
    (at / "key.json").unlink(missing_ok=True)
    key.write(at / "key.json")
    found = reader_items.read_key(at / "key.json")
    assert (found.items, found.facts) == (key.items, key.facts)


def test_ids_with_spaces_at_their_ends_are_scored_with_themselves(tmp_path):
    """Of files that were predicted: not only read as they are, but joined with the truth."""
    ids, classes = [" a", "a", "a "], Classes.of(["benign", "malignant"])
    hot = np.eye(2)[[0, 1, 0]]
    tables.write_predictions(tmp_path / "p.csv", ids, hot, classes)
    tables.write_predictions(tmp_path / "t.csv", ids[::-1], hot[::-1], classes)
    scores, truth = tables.join(tmp_path / "p.csv", tmp_path / "t.csv", classes)
    assert truth.image_ids == ids[::-1]
    assert truth.labels.tolist() == scores.probabilities.argmax(axis=1).tolist()
    assert math.isclose(scores.probabilities.sum(), 3)
