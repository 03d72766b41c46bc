"""Any table that labels the images of a folder."""

from collections import Counter

import pytest

from skin_jax.base.errors import UserError
from skin_jax.data import layouts, splits
from skin_jax.data.classes import UNLABELLED
from skin_jax.data.reading import Reading


@pytest.fixture
def folder(tmp_path, write):
    """Eight images, four of them one folder deeper."""
    for k in range(8):
        write["image"](tmp_path / ("deep" if k > 3 else "") / f"i{k}.png", k)
    return tmp_path


def read(folder, **reading):
    return layouts.read(folder, Reading(table="t.csv", **reading))


HEADER = "image_id diagnosis lesion_id patient_id split age sex region"
ROWS = [
    "i0 nevus L0 P0 train 40 F face",
    "i1.png nevus L0 P0 train 85+ female _",
    "i2 melanoma L1 P0 training _ M _",
    "deep/i4 melanoma NA P1 val _ _ _",
    "deep/i5.png wart L5 ? valid _ _ _",
    "i6 wart _ nan test _ _ _",
    "i7 melanoma L5 P2 Test _ _ _",
]


@pytest.mark.parametrize(("name", "separator"), [("t.csv", ","), ("t.tsv", "\t"), ("t.txt", ";")])
def test_columns_with_usual_names(folder, write, name, separator):
    write["table"](folder / name, HEADER, *ROWS, separator=separator)
    listing = layouts.read(folder, Reading(table=name))
    assert (listing.layout, listing.problems, listing.unit) == ("table", (), "patient")
    assert listing.classes.names == ("melanoma", "nevus", "wart")
    assert listing.classes.focus == "melanoma"
    ids = ["deep/i4", "deep/i5", "i0", "i1", "i2", "i6", "i7"]
    assert [r.image_id for r in listing.records] == ids
    # The lesion of i5 has images of P2; i0, i1 and i2 are of one patient.
    assert [r.lesion_id for r in listing.records] == ["P1", "P2", "P0", "P0", "P0", "i6", "P2"]
    sides = ["val", "val", "train", "train", "train", "test", "test"]
    assert [r.official_split for r in listing.records] == sides
    i0, i1, i2 = listing.records[2:5]
    assert [(r.age, r.sex) for r in (i0, i1)] == [(40, "female"), (85, "female")]
    assert (i2.sex, i0.localization) == ("male", "face")
    assert listing.notes[0] == (
        f"columns of {name}: image: image_id; class: diagnosis; lesion: lesion_id; patient: "
        "patient_id; split (with data.split=official): split; age: age; sex: sex; localization: "
        "region"
    )
    assert listing.notes[1].startswith("1 of 7 images have no lesion, patient or group")
    assert listing.notes[2] == f"not read: images without a row in {name} (1)"


def test_columns_by_name(folder, write):
    rows = [f"{k} i{k} {'ab'[k % 2]} {'xy'[k // 4]} {k}" for k in range(8)]
    write["table"](folder / "t.csv", "id name what box note", *rows)
    named = {"image_column": "name", "label_column": "what", "group_column": "box"}
    listing = read(folder, **named)
    assert (listing.problems, listing.unit) == ((), "group")
    assert [r.lesion_id for r in listing.records] == [*"xxxxyyyy"]
    assert [r.label for r in listing.records] == [0, 1] * 4
    assert {r.official_split for r in listing.records} == {"train"}
    assert any(
        "no column 'nam'" in p for p in read(folder, **named | {"image_column": "nam"}).problems
    )
    # Two columns of groups: what they share comes together.
    listing = read(folder, **named | {"group_column": "box, note"})
    assert len({r.lesion_id for r in listing.records}) == 2


def test_columns_that_nobody_can_guess_are_refused(folder, write):
    write["table"](folder / "t.csv", "image file class dx", "i0 i0 a b", "i1 i1 b a")
    assert read(folder).problems == (
        "t.csv: the columns image and file could both be that of the image; choose with "
        "data.image_column",
        "t.csv: the columns class and dx could both be that of the label; choose with "
        "data.label_column",
    )
    write["table"](folder / "t.csv", "picture kind", "i0 a", "i1 b")
    assert read(folder).problems == (
        "t.csv: no column has a usual name for the image; name it with data.image_column; there "
        "are picture, kind",
        "t.csv: no column has a usual name for the label; name it with data.label_column; there "
        "are picture, kind",
    )


def test_one_hot(folder, write):
    rows = [
        f"i{k} {k} " + " ".join("1" if k % 3 == c else "0.0" for c in range(3)) for k in range(8)
    ]
    write["table"](folder / "t.csv", "image weight a b c", *rows)
    listing = read(folder)
    assert listing.problems == ()
    assert listing.classes.names == ("a", "b", "c")
    assert [r.label for r in listing.records] == [0, 1, 2, 0, 1, 2, 0, 1]
    assert "class: a, b, c" in listing.notes[0]
    assert read(folder, label_column="a,b,c").records == listing.records
    listing = read(folder, classes=("c", "a"))
    assert [r.label for r in listing.records] == [1, 0, 1, 0, 1]
    assert "images of other classes are left out: 3 without any" in listing.notes
    listing = read(folder, rename=(("a", "x"), ("b", "x")))
    assert listing.classes.names == ("c", "x")
    write["table"](folder / "t.csv", "image a b", "i0 1 1", "i1 0 1")
    assert "no column has a usual name for the label;" in read(folder).problems[0]
    assert read(folder, label_column="a,b").problems == (
        "t.csv, row 2: the class columns sum to 2, not to 1",
    )


def test_missing_classes(folder, write):
    write["table"](folder / "t.csv", "image label", "i0 a", "i1 NA", "i2 b", "i3 unknown")
    problems = read(folder).problems
    assert [problem.partition(";")[0] for problem in problems] == [
        "t.csv, row 3: no class 'NA'",
        "t.csv, row 5: no class 'unknown'",
    ]
    listing = read(folder, classes=("a", "b"))
    assert (len(listing.records), listing.problems) == (2, ())
    assert "images of other classes are left out: 2 without any" in listing.notes
    assert len(read(folder, classes=("a", "unknown")).records) == 2


def test_rows_without_a_class_may_stay(folder, write):
    rows = ["i0 a", "i1 NA", "i2 b", "i3 unknown"]
    write["table"](folder / "t.csv", "image label", *rows)
    for classes in ((), ("a", "b")):
        listing = read(folder, classes=classes, on_missing_label="keep")
        assert (listing.problems, listing.classes.names) == ((), ("a", "b"))
        assert [r.label for r in listing.records] == [0, UNLABELLED, 1, UNLABELLED]
        assert any(note.startswith("2 of 4 images have no label") for note in listing.notes)
    # Where something is evaluated, each image needs one.
    target = read(folder, classes=("a", "b")).classes
    reading = Reading(table="t.csv", on_missing_label="keep")
    assert len(layouts.read(folder, reading, target).problems) == 2
    write["table"](folder / "t.csv", "image a b", "i0 1 0", "i1 0 0", "i2 0 1")
    listing = read(folder, label_column="a,b", on_missing_label="keep")
    assert [r.label for r in listing.records] == [0, UNLABELLED, 1]
    write["table"](folder / "t.csv", "image label", "i0 NA", "i1 NA")
    assert "no image has a label" in read(folder, on_missing_label="keep").problems[0]
    with pytest.raises(UserError, match="on_missing_label needs a table"):
        Reading(on_missing_label="keep")


def test_ids_with_paths_of_another_machine(folder, write):
    rows = [r"/kaggle/input/x/i0.png a", r"C:\data\i4.png b"]
    write["table"](folder / "t.csv", "path label", *rows)
    listing = read(folder)
    assert listing.problems == ()
    assert [r.path.name for r in listing.records] == ["i0.png", "i4.png"]


def test_rows_that_are_ambiguous_are_refused(folder, write):
    write["image"](folder / "other" / "i4.png", 30)
    rows = ["i4 a", "i0 a", "i0.png b", "I1 b", "i9 a", "deep/i5 b", "deep/i5 b"]
    write["table"](folder / "t.csv", "image label", *rows)
    assert read(folder).problems == (
        "t.csv, row 8: duplicate id deep/i5, also in row 7",
        "other/i4.png: duplicate image id i4, also deep/i4.png",
        "t.csv, row 4: the same image as in t.csv, row 3: i0.png",
        "1 ids in t.csv differ from the names of their files only in upper and lower case or in "
        "the form of accents, such as I1 (t.csv, row 5) and i1.png; spell them the same",
        "t.csv, row 6: no image file for id i9",
    )


def test_a_split_column_with_other_words(folder, write):
    write["table"](folder / "t.csv", "image label split", "i0 a train", "i1 b holdout")
    assert read(folder).problems == (
        "t.csv, row 3, column split: 'holdout' is not train, val or test",
    )


def test_where_the_table_is(folder, tmp_path, write, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = ("image label", "i0 a", "i1 b")
    with pytest.raises(UserError, match=r"no table t\.csv, neither in the current folder nor in"):
        read(folder / "deep")
    write["table"](tmp_path / "t.csv", *rows)
    (tmp_path / "images").mkdir()
    for name in ("i0.png", "i1.png"):
        (folder / name).rename(tmp_path / "images" / name)
    assert len(read(tmp_path / "images").records) == 2
    write["table"](tmp_path / "images" / "t.csv", *rows)
    with pytest.raises(UserError, match=r"both exist; give the absolute path"):
        read(tmp_path / "images")
    monkeypatch.chdir(tmp_path / "images")
    assert len(read(tmp_path / "images").records) == 2


def test_no_patient_and_no_lesion_is_on_two_sides(tmp_path, write):
    """Lesions inside patients, lesions that two patients share, and images of neither."""
    header = "image label lesion_id patient_id"
    rows = []
    for k in range(120):
        patient = f"P{k // 5}" if k % 4 else "_"
        rows.append(f"i{k} {'abc'[k % 3]} {f'L{k // 2}' if k % 7 else '_'} {patient}")
        (tmp_path / f"i{k}.png").touch()
    write["table"](tmp_path / "t.csv", header, *rows)
    listing = read(tmp_path)
    assert listing.problems == ()
    options = {"split": "lesion", "fractions": (0.6, 0.2, 0.2), "split_seed": 0}
    for fold in (None, 0, 3):
        sides = splits.draw(listing.records, fold=fold, **options)
        side_of = {r.image_id: s for r, s in zip(listing.records, sides, strict=True)}
        assert len(set(side_of.values())) == 3
        for column in (2, 3):
            found = {(c[column], side_of[c[0]]) for c in map(str.split, rows) if c[column] != "_"}
            assert max(Counter(group for group, _ in found).values()) == 1


def test_a_patient_with_the_id_of_another_s_lesion(tmp_path, write):
    for k in range(4):
        (tmp_path / f"i{k}.png").touch()
    rows = ["i0 a 7 _", "i1 b 7 _", "i2 a _ 7", "i3 b _ 8"]
    write["table"](tmp_path / "t.csv", "image label lesion_id patient_id", *rows)
    assert [r.lesion_id for r in read(tmp_path).records] == ["7", "7", "patient 7", "8"]
