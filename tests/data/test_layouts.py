import math
import os
import shutil
from collections import Counter

import pytest

from skin_jax.base.errors import UserError
from skin_jax.data import classes, layouts

TRUTH = "ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv"
INPUT = "ISIC2018_Task3_Training_Input"
GROUPINGS = "ISIC2018_Task3_Training_LesionGroupings.csv"


def edit(path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8-sig")
    assert old in text
    path.write_text(text.replace(old, new, 1))


def only_problem(root) -> str:
    problems = layouts.read(root).problems
    assert len(problems) == 1, problems
    return problems[0]


# What is read


def test_official_layout(official, labels):
    listing = layouts.read(official)
    assert listing.layout == "ISIC 2018 Task 3"
    assert listing.problems == ()
    assert [r.image_id for r in listing.records] == sorted(labels)
    assert {r.image_id: classes.CLASSES[r.label] for r in listing.records} == labels
    first = listing.records[0]
    assert first.lesion_id == "L0"
    assert listing.records[1].lesion_id == "L0"
    assert first.confirmation == "histo"
    assert math.isnan(first.age)
    assert first.official_split == "train"
    assert first.path == official / INPUT / f"{first.image_id}.jpg"


def test_without_groupings_each_image_is_its_own_lesion(official):
    (official / GROUPINGS).unlink()
    listing = layouts.read(official)
    assert listing.problems == ()
    assert all(r.lesion_id == r.image_id for r in listing.records)


def test_metadata_beside_the_official_folders_is_joined_by_id(official, labels):
    (official / "HAM10000_metadata.csv").write_text(
        "lesion_id,image_id,dx,dx_type,age,sex,localization\r\n"
        "HAM_1,ISIC_0000000,nv,follow_up,45,female,unknown\r\n"
        "HAM_2,ISIC_0000001,nv,consensus,,unknown,trunk\r\n"
        "HAM_3,ISIC_9999999,nv,histo,1,male,face\r\n"
    )
    first, second, *others = layouts.read(official).records
    assert (first.age, first.sex, first.localization) == (45, "female", "")
    assert (second.sex, second.localization) == ("", "trunk")
    assert math.isnan(second.age)
    # The official files go before: label, lesion and confirmation stay theirs.
    assert (classes.CLASSES[first.label], first.lesion_id) == (labels["ISIC_0000000"], "L0")
    assert first.confirmation == "histo"
    assert len(others) == 12
    (official / GROUPINGS).unlink()
    first, second, *others = layouts.read(official).records
    assert (first.lesion_id, first.confirmation) == ("HAM_1", "follow_up")
    assert others[0].lesion_id == others[0].image_id


def test_validation_and_test_folders(official, write):
    write["official"](official, {"ISIC_V": "mel"}, "Validation")
    write["image"](official / "ISIC2018_Task3_Test_Input" / "ISIC_T.jpg", 0)
    listing = layouts.read(official)
    assert Counter(r.official_split for r in listing.records) == {"train": 14, "val": 1}
    assert "ISIC2018_Task3_Test_Input is left out: it has no ground truth" in listing.notes[0]
    shutil.rmtree(official / "ISIC2018_Task3_Test_Input")
    write["official"](official, {"ISIC_T": "df"}, "Test")
    listing = layouts.read(official)
    assert listing.problems == listing.notes == ()
    (test,) = [r for r in listing.records if r.official_split == "test"]
    assert (test.image_id, test.lesion_id) == ("ISIC_T", "ISIC_T")


@pytest.mark.parametrize("metadata", ["HAM10000_metadata.csv", "HAM10000_metadata"])
def test_ham10000_layout(tmp_path, labels, write, metadata):
    root = write["ham10000"](tmp_path, labels, metadata)
    masks = root / "HAM10000_segmentations_lesion_tschandl"
    write["image"](masks / "ISIC_0000000_segmentation.png", 0)
    listing = layouts.read(root)
    assert listing.layout == "HAM10000"
    assert listing.problems == ()
    assert {r.image_id: classes.CLASSES[r.label] for r in listing.records} == labels
    first = listing.records[0]
    assert (first.lesion_id, first.age, first.sex) == ("HAM_0", 40.0, "male")
    assert (first.localization, first.confirmation) == ("back", "histo")


def test_kaggle_ships_its_folders_twice(tmp_path, labels, write):
    root = write["ham10000"](tmp_path, labels, "HAM10000_metadata.csv")
    shutil.copytree(root / "HAM10000_images_part_1", root / "ham10000_images_part_1")
    part = root / "HAM10000_images_part_2"
    shutil.copytree(part, part / "HAM10000_images_part_2")
    listing = layouts.read(root)
    assert listing.problems == ()
    assert len(listing.records) == 14


def test_unzipped_flat_beside_the_metadata(tmp_path, labels, write):
    root = write["ham10000"](tmp_path, labels, "HAM10000_metadata.csv")
    for path in root.glob("*/*.jpg"):
        path.rename(root / path.name)
    assert len(layouts.read(root).records) == 14


def test_class_folders_in_any_case(tmp_path, labels, write):
    root = write["classes"](tmp_path, {i: name.upper() for i, name in labels.items()})
    (root / "notes").mkdir()
    (root / "notes" / "readme.txt").write_text("x")
    (root / ".DS_Store").write_text("x")
    listing = layouts.read(root)
    assert listing.layout == "class folders"
    assert listing.problems == ()
    assert {r.image_id: classes.CLASSES[r.label] for r in listing.records} == labels


def test_a_symlinked_folder_is_read(official, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(official)
    assert len(layouts.read(link).records) == 14


def test_real_data(real_data):
    listing = layouts.read(real_data)
    assert listing.problems == ()
    counts = Counter(classes.CLASSES[r.label] for r in listing.records)
    assert len(listing.records) == 5984
    assert [counts[name] for name in classes.CLASSES] == [183, 264, 583, 60, 491, 4323, 80]
    assert {r.confirmation for r in listing.records} == {
        "histo",
        "follow_up",
        "consensus",
        "confocal",
    }
    assert all(r.lesion_id.startswith("HAM_") for r in listing.records)


# The key of the cache


def test_cache_key_follows_names_sizes_times_and_tables(official, tmp_path):
    key = layouts.read(official).cache_key
    assert layouts.read(official).cache_key == key
    moved = tmp_path / "moved"
    shutil.copytree(official, moved)  # keeps the times
    assert layouts.read(moved).cache_key == key
    (official / INPUT / "LICENSE.txt").write_text("other terms")
    assert layouts.read(official).cache_key == key

    image = official / INPUT / "ISIC_0000003.jpg"
    stat = image.stat()
    os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    touched = layouts.read(official).cache_key
    assert touched != key
    edit(official / GROUPINGS, "L0", "L9")
    assert layouts.read(official).cache_key not in (key, touched)


# What is refused at once


def test_missing_folder_and_file(tmp_path):
    with pytest.raises(UserError, match=r"nowhere does not exist.*--config\.data\.dir"):
        layouts.read(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        layouts.read(tmp_path / "file")


def test_empty_and_unknown_folders_say_what_was_looked_for(tmp_path):
    for content, word in ((), "is empty"), (("a.txt",), "none of the known layouts"):
        for name in content:
            (tmp_path / name).touch()
        with pytest.raises(UserError) as caught:
            layouts.read(tmp_path)
        for wanted in (word, INPUT, "HAM10000_metadata.csv", "akiec, bcc"):
            assert wanted in str(caught.value)


def test_a_folder_too_high_or_too_low_is_named(official):
    for wrong in (official.parent, official / INPUT):
        with pytest.raises(UserError, match=rf"{official} looks right"):
            layouts.read(wrong)


def test_a_layout_without_images(official):
    for path in (official / INPUT).glob("*.jpg"):
        path.unlink()
    with pytest.raises(UserError, match=r"holds no images.*unpack"):
        layouts.read(official)


# What is collected: file, row and column


def test_row_without_image(official):
    (official / INPUT / "ISIC_0000003.jpg").unlink()
    assert only_problem(official) == f"{TRUTH}, row 5: no image file for id ISIC_0000003"


def test_image_without_row(official, write):
    write["image"](official / INPUT / "ISIC_8.jpg", 0)
    assert only_problem(official) == f"{INPUT}/ISIC_8.jpg: no row for this image in {TRUTH}"


def test_duplicate_id_in_a_table(official):
    edit(official / TRUTH, "ISIC_0000001,", "ISIC_0000000,")
    (official / INPUT / "ISIC_0000001.jpg").unlink()
    assert only_problem(official) == f"{TRUTH}, row 3: duplicate id ISIC_0000000, also in row 2"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("0,0.0,0.0,0.0,1.0", "0,1.0,0.0,0.0,1.0", ["row", "sum to 2, not to 1"]),
        ("1.0", "0.0", ["row 2", "sum to 0, not to 1"]),
        ("1.0,0.0", "0.5,0.5", ["row 2", "not one 1 and zeros"]),
        ("1.0", "yes", ["row 2", "column AKIEC", "'yes' is not a number"]),
        ("1.0", "nan", ["row 2", "column AKIEC", "'nan' is not a number"]),
        (",0.0\n", "\n", ["row 2", "7 values", "8 columns"]),
        ("\nISIC_0000000", "\n", ["row 2, column image: empty"]),
        ("BKL", "BLK", ["row 1", "missing column BKL", "found image, MEL, NV, BCC, AKIEC, BLK"]),
    ],
)
def test_bad_ground_truth(official, old, new, words):
    edit(official / TRUTH, old, new)
    problem = layouts.read(official).problems[0]
    assert problem.startswith(TRUTH)
    assert all(word in problem for word in words), problem


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty", "expected a header with image"]),
        (b"image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\n", ["header without rows"]),
        (b"image,MEL\nISIC_1,\xff\xfe\n", ["row 2", "not UTF-8"]),
        (b'image,MEL\n"ISIC_1,0\n', ["not a CSV"]),
    ],
)
def test_tables_that_cannot_be_read(official, content, words):
    (official / TRUTH).write_bytes(content)
    problem = only_problem(official)
    assert problem.startswith(TRUTH)
    assert all(word in problem for word in words), problem


def test_bad_groupings(official):
    edit(official / GROUPINGS, "ISIC_0000000,L0", "ISIC_0000000,")
    assert only_problem(official) == f"{GROUPINGS}, row 2, column lesion_id: empty"
    edit(official / GROUPINGS, "ISIC_0000000,,histopathology\n", "")
    assert only_problem(official).endswith(
        "row 2: no row for ISIC_0000000 in the LesionGroupings file"
    )


def test_bad_metadata(tmp_path, labels, write):
    root = write["ham10000"](tmp_path, labels, "HAM10000_metadata.csv")
    edit(root / "HAM10000_metadata.csv", "ISIC_0000000,akiec", "ISIC_0000000,wart")
    edit(root / "HAM10000_metadata.csv", "41.0", "old")
    problems = layouts.read(root).problems
    assert "row 2, column dx: unknown class 'wart' (known: akiec" in problems[0]
    assert "row 3, column age: 'old' is not a number" in problems[1]
    assert len(problems) == 2
    edit(root / "HAM10000_metadata.csv", "dx,", "diagnosis,")
    assert "missing column dx; found lesion_id, image_id, diagnosis" in only_problem(root)


def test_duplicate_ids_over_folders(tmp_path, labels, write):
    root = write["ham10000"](tmp_path, labels, "HAM10000_metadata.csv")
    write["image"](root / "HAM10000_images_part_2" / "ISIC_0000000.jpg", 5)
    problem = only_problem(root)
    assert problem == (
        "HAM10000_images_part_2/ISIC_0000000.jpg: duplicate image id ISIC_0000000, "
        "also HAM10000_images_part_1/ISIC_0000000.jpg"
    )


def test_bad_class_folders(tmp_path, labels, write):
    root = write["classes"](tmp_path, labels)
    write["image"](root / "wart" / "a.jpg", 0)
    write["image"](root / "loose.jpg", 0)
    write["image"](root / "nv" / "ISIC_0000000.jpg", 0)
    loose, duplicate, unknown = layouts.read(root).problems
    assert loose == "loose.jpg: an image outside the class folders"
    assert "nv/ISIC_0000000.jpg: duplicate image id ISIC_0000000, also akiec/" in duplicate
    assert unknown.startswith("wart: unknown class; 1 image file(s) in it")


def test_all_problems_are_collected(official, write):
    edit(official / TRUTH, "1.0", "2.0")
    (official / INPUT / "ISIC_0000004.jpg").unlink()
    write["image"](official / INPUT / "ISIC_8.jpg", 0)
    assert len(layouts.read(official).problems) == 3
