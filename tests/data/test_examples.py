import math
import shutil

import numpy as np
import pytest

from skin_jax.data import splits, store
from skin_jax.data.classes import Classes
from skin_jax.data.examples import Digest, Record, components, digest_of, join_copies

CLASSES = Classes.of(["a", "b"])


def record(image_id, lesion_id, label=0, official="train") -> Record:
    return Record(image_id, label, lesion_id, math.nan, "", "", "", official)


def test_components():
    part = components([["a", "b"], ["c"], ["d", "e"], ["b", "d"], ["f", "f"]])
    groups = {}
    for node, representative in part.items():
        groups.setdefault(representative, set()).add(node)
    assert sorted(map(sorted, groups.values())) == [["a", "b", "d", "e"], ["c"], ["f"]]


def test_a_large_component_is_found_quickly():
    part = components([[f"i{k}", "site"] for k in range(50_000)])
    assert len(set(part.values())) == 1


def test_copies_are_equal_pixels():
    copies = Digest()
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 3, 3), np.uint8)
    for k in (0, 1, 2, 1, 3, 0, 1):
        copies.add(images[k])
    assert copies.copies() == [[0, 5], [1, 3, 6]]


def test_groups_of_copies_become_one():
    records = [record("0", "L1"), record("1", "L1"), record("2", "L0"), record("3", "L3")]
    joined, notes = join_copies(records, [[1, 2]], CLASSES)
    assert [r.lesion_id for r in joined] == ["L0", "L0", "L0", "L3"]
    assert notes == ["exact copies of other images: 1; data.split=lesion keeps them together"]
    assert join_copies(records, [], CLASSES) == (tuple(records), [])


def test_copies_of_other_classes_and_sides_are_listed():
    records = [record(f"{k}", f"L{k}", k % 2, "test" if k > 20 else "train") for k in range(24)]
    _, notes = join_copies(records, [[k, k + 1] for k in range(0, 24, 2)], CLASSES)
    assert len(notes) == 3
    assert notes[1].endswith(": 1, such as 20 (train) = 21 (test)")
    assert "one of which must be wrong: 12: 0 (a) = 1 (b); 2 (a) = 3 (b); " in notes[2]
    assert notes[2].endswith("; and 2 more")
    _, notes = join_copies(records, [list(range(24))], CLASSES)
    assert notes[2].endswith("0 (a) = 1 (b) = 2 (a) = 3 (b) = 4 (a) = ...")


@pytest.fixture
def copied(tmp_path, write):
    """Two classes of ten images, each of them twice, under another name or in another format."""
    for k in range(20):
        path = tmp_path / "data" / "ab"[k // 10] / f"{k}.png"
        write["image"](path, k)
        shutil.copy(path, path.with_name(f"{k} - Copy.png"))
    return tmp_path


def test_copies_stay_on_one_side_of_the_split(copied, capsys):
    options = {"image_size": 8, "cache_dir": copied / "cache", "progress": False}
    examples = store.prepare(copied / "data", **options)
    said = capsys.readouterr().err
    assert "exact copies of other images: 20" in said
    lesions = {r.image_id: r.lesion_id for r in examples.records}
    assert all(lesions[i.removesuffix(" - Copy")] == lesion for i, lesion in lesions.items())
    draw = {"split": "lesion", "fractions": (0.7, 0.1, 0.2), "split_seed": 0, "fold": None}
    sides = splits.draw(examples.records, **draw)
    side_of = {r.image_id: s for r, s in zip(examples.records, sides, strict=True)}
    assert len(set(side_of.values())) == 3
    assert all(side_of[i] == side_of[i.removesuffix(" - Copy")] for i in side_of)
    assert examples.digest == digest_of(examples.records, examples.images)

    again = store.prepare(copied / "data", **options)  # from the cache
    assert (again.records, again.digest) == (examples.records, examples.digest)
    assert capsys.readouterr().err == said


def test_copies_of_another_class_are_told(copied, capsys):
    (copied / "data" / "a" / "3 - Copy.png").rename(copied / "data" / "b" / "x.png")
    store.prepare(copied / "data", image_size=8, cache_dir=copied / "cache", progress=False)
    assert "one of which must be wrong: 1: a/3 (a) = b/x (b)\n" in capsys.readouterr().err
