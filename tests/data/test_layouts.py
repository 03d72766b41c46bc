import math
import os
import shutil
from collections import Counter

import pytest

from skin_jax.base.errors import UserError
from skin_jax.data import layouts
from skin_jax.data.classes import HAM10000, Classes
from skin_jax.data.reading import Reading

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
    assert listing.problems == listing.notes == ()
    assert (listing.classes, listing.unit) == (HAM10000, "lesion")
    assert [r.image_id for r in listing.records] == sorted(labels)
    assert {r.image_id: HAM10000.names[r.label] for r in listing.records} == labels
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
    assert (listing.problems, listing.unit) == ((), "image")
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
    assert (HAM10000.names[first.label], first.lesion_id) == (labels["ISIC_0000000"], "L0")
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


@pytest.mark.parametrize("part", ["Validation", "Test"])
def test_one_part_of_the_challenge_is_enough(tmp_path, labels, write, part):
    root = write["official"](tmp_path, labels, part)
    listing = layouts.read(root)
    assert (listing.layout, listing.problems) == ("ISIC 2018 Task 3", ())
    assert {r.official_split for r in listing.records} == {
        "val" if part == "Validation" else "test"
    }


def test_tables_in_folders_of_their_name_as_unpacked_twice(official, labels):
    folder = (official / TRUTH).parent
    folder.rename(official / "x")
    (official / "x").rename(official / "y")
    folder.mkdir()
    (official / "y").rename(folder / folder.name)
    assert len(layouts.read(official).records) == len(labels)


def test_two_tables_that_differ_are_refused(official):
    (official / (official / TRUTH).name).write_bytes((official / TRUTH).read_bytes())
    assert layouts.read(official).problems == ()
    edit(official / TRUTH, "1.0,0.0", "0.0,1.0")
    assert "differ; remove one of them" in only_problem(official)


@pytest.mark.parametrize(
    "metadata",
    [
        "HAM10000_metadata.csv",
        "HAM10000_metadata",
        "HAM10000_metadata.tab",
        "ham10000_metadata.csv",
    ],
)
def test_ham10000_layout(tmp_path, labels, write, metadata):
    root = write["ham10000"](tmp_path, labels, metadata)
    if metadata.endswith(".tab"):  # as Dataverse hands it out
        rows = [row.split(",") for row in (root / metadata).read_text().splitlines()]
        quoted = ["\t".join(f'"{cell}"' for cell in row) for row in rows]
        (root / metadata).write_text("\n".join(quoted))
    masks = root / "HAM10000_segmentations_lesion_tschandl"
    write["image"](masks / "ISIC_0000000_segmentation.png", 0)
    listing = layouts.read(root)
    assert listing.layout == "HAM10000"
    assert listing.problems == ()
    assert listing.notes == ("not read: the folder HAM10000_segmentations_lesion_tschandl",)
    assert {r.image_id: HAM10000.names[r.label] for r in listing.records} == labels
    first = listing.records[0]
    assert (first.lesion_id, first.age, first.sex) == ("HAM_0", 40.0, "male")
    assert (first.localization, first.confirmation) == ("back", "histo")


def test_ham10000_with_its_images_merged(tmp_path, labels, write):
    root = write["ham10000"](tmp_path, labels, "HAM10000_metadata.csv")
    for path in root.glob("*/*.jpg"):
        (root / "images").mkdir(exist_ok=True)
        path.rename(root / "images" / path.name)
    listing = layouts.read(root)
    assert (len(listing.records), listing.problems) == (14, ())


def test_ham10000_with_the_test_set_that_dataverse_has(tmp_path, labels, write):
    root = write["ham10000"](tmp_path, labels, "HAM10000_metadata.csv")
    write["image"](root / "ISIC2018_Task3_Test_Images" / "ISIC_T.jpg", 77)
    table = root / "ISIC2018_Task3_Test_GroundTruth.csv"
    table.write_text(
        "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset\n"
        "HAMTEST_1,ISIC_T,df,histo,85+,female,NA,vidir\n"
    )
    listing = layouts.read(root)
    assert (listing.layout, listing.problems) == ("HAM10000", ())
    (test,) = [r for r in listing.records if r.official_split == "test"]
    assert (test.lesion_id, HAM10000.names[test.label], test.age) == ("HAMTEST_1", "df", 85)
    shutil.rmtree(root / "HAM10000_images_part_1")
    shutil.rmtree(root / "HAM10000_images_part_2")
    (root / "HAM10000_metadata.csv").unlink()
    assert layouts.read(root).layout == "ISIC 2018 Task 3"  # for a run that is evaluated there


def test_kaggle_ships_its_folders_twice(tmp_path, labels, write):
    root = write["ham10000"](tmp_path, labels, "HAM10000_metadata.csv")
    shutil.copytree(root / "HAM10000_images_part_1", root / "ham10000_images_part_1")
    part = root / "HAM10000_images_part_2"
    shutil.copytree(part, part / "HAM10000_images_part_2")
    listing = layouts.read(root)
    assert listing.problems == ()
    assert len(listing.records) == 14
    assert listing.notes == ("not read: images that are there twice, in folders of one name (14)",)


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
    assert {r.image_id: HAM10000.names[r.label] for r in listing.records} == labels
    assert listing.notes == ("not read: *.txt (1), the folder notes",)


def three_classes(root, write):
    """The same file names in each of three folders."""
    for k, name in enumerate(("malignant", "benign-nevus", "other 10", "other 9")):
        for number in range(3):
            write["image"](root / name / f"{number}.png", 10 * k + number)
    return root


def test_class_folders_of_any_names(tmp_path, write):
    listing = layouts.read(three_classes(tmp_path, write))
    assert listing.problems == ()
    assert listing.classes.names == ("benign-nevus", "malignant", "other 9", "other 10")
    assert listing.classes.focus == "malignant"
    assert listing.unit == "image"
    ids = [r.image_id for r in listing.records]
    assert ids[:4] == ["benign-nevus/0", "benign-nevus/1", "benign-nevus/2", "malignant/0"]
    assert all(listing.classes.names[r.label] == r.image_id[:-2] for r in listing.records)
    assert "every folder is a class: benign-nevus, malignant" in listing.notes[0]


def test_the_seven_with_equal_file_names_have_the_class_in_their_ids(tmp_path, write):
    for k, name in enumerate(HAM10000.names):
        write["image"](tmp_path / name / "1.png", k)
    listing = layouts.read(tmp_path)
    assert listing.classes is HAM10000
    assert [r.image_id for r in listing.records] == [f"{name}/1" for name in HAM10000.names]


def test_classes_are_picked_ordered_and_renamed(tmp_path, write):
    three_classes(tmp_path, write)
    reading = Reading(
        classes=("malignant", "rest"), rename=(("other 9", "rest"), ("other 10", "rest"))
    )
    listing = layouts.read(tmp_path, reading)
    assert listing.problems == ()
    assert listing.classes.names == ("malignant", "rest")
    counts = Counter(listing.classes.names[r.label] for r in listing.records)
    assert counts == {"malignant": 3, "rest": 6}
    assert "images of other classes are left out: 3 of benign-nevus" in listing.notes
    for reading, words in (
        (Reading(classes=("malign", "other 9")), "no image is of 'malign'; there are benign-nevus"),
        (Reading(rename=(("malign", "x"),)), "there is no class 'malign'; there are benign-nevus"),
    ):
        assert any(words in problem for problem in layouts.read(tmp_path, reading).problems)


def test_two_of_the_seven(official):
    listing = layouts.read(official, Reading(classes=("nv", "mel")))
    assert listing.problems == ()
    assert listing.classes.titles == ("melanocytic nevus", "melanoma")
    assert Counter(r.label for r in listing.records) == {0: 2, 1: 2}


def test_the_classes_of_a_run_that_is_evaluated_elsewhere(tmp_path, write):
    three_classes(tmp_path, write)
    run = Classes.of(["other", "malignant", "benign-nevus", "absent"])
    (problem, _) = layouts.read(tmp_path, target=run).problems
    assert problem == (
        "other 10: unknown class 'other 10' (and in 2 more) (known: other, malignant, benign-nevus,"
        " absent); rename it with data.rename (--rename) or name the classes to take with "
        "data.classes (--classes)"
    )
    reading = Reading(rename=(("other 9", "other"), ("other 10", "other")))
    listing = layouts.read(tmp_path, reading, run)
    assert (listing.problems, listing.classes) == ((), run)
    assert Counter(r.label for r in listing.records) == {0: 6, 1: 3, 2: 3}
    listing = layouts.read(tmp_path, Reading(classes=("malignant",)), run)
    assert {r.label for r in listing.records} == {1}
    with pytest.raises(UserError, match="knows no class 'other 9'; it knows other, malignant"):
        layouts.read(tmp_path, Reading(classes=("other 9",)), run)
    shutil.rmtree(tmp_path / "other 9")
    shutil.rmtree(tmp_path / "other 10")
    shutil.rmtree(tmp_path / "benign-nevus")  # one class folder, which the run knows
    assert len(layouts.read(tmp_path, target=run).records) == 3


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_train_val_and_test_with_class_folders(tmp_path, write, val):
    for k, side in enumerate(("train", val, "testing")):
        for j, name in enumerate(("benign", "malignant")):
            write["image"](tmp_path / side / name / "1.png", 10 * k + j)
    listing = layouts.read(tmp_path)
    assert (listing.layout, listing.problems) == ("split folders", ())
    assert listing.classes.names == ("benign", "malignant")
    sides = {r.image_id: r.official_split for r in listing.records}
    assert sides["train/benign/1"] == "train"
    assert sides[f"{val}/malignant/1"] == "val"
    assert sides["testing/benign/1"] == "test"
    assert (
        f"the split into train, {val}, testing is kept with data.split=official"
        in (listing.notes[0])
    )


def test_odd_split_folders(tmp_path, write):
    for k, folder in enumerate(("train/a", "train/b", "val/a", "validation/a", "more/a", "test")):
        write["image"](tmp_path / folder / f"{k}.png", k)
    both, beside = layouts.read(tmp_path).problems
    assert both == (
        "more: images next to the folders of a split; move them to the side that they belong to"
    )
    assert beside == "validation and val are both val"
    shutil.rmtree(tmp_path / "validation")
    shutil.rmtree(tmp_path / "more")
    listing = layouts.read(tmp_path)
    assert listing.problems == ()
    assert [r.image_id for r in listing.records] == ["a/0", "a/2", "b/1"]
    assert "not read: images in test, which has no class folders (1)" in listing.notes


def test_metadata_beside_class_folders_are_joined_and_compared(tmp_path, labels, write):
    root = write["classes"](tmp_path / "classes", labels)
    write["ham10000"](tmp_path / "ham", labels, "HAM10000_metadata.csv")
    shutil.copy(tmp_path / "ham" / "HAM10000_metadata.csv", root)
    listing = layouts.read(root)
    assert (listing.layout, listing.problems, listing.unit) == ("class folders", (), "lesion")
    assert (listing.records[1].lesion_id, listing.records[1].age) == ("HAM_0", 41)
    edit(root / "HAM10000_metadata.csv", "ISIC_0000000,akiec", "ISIC_0000000,bcc")
    assert only_problem(root) == ("akiec/ISIC_0000000.png: HAM10000_metadata.csv, row 2 says bcc")


def test_a_symlinked_folder_is_read(official, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(official)
    assert len(layouts.read(link).records) == 14


def test_classes_of_a_layout_may_be_joined(official):
    found = layouts.read(official, Reading(rename=(("akiec", "x"), ("bcc", "x"))))
    assert (found.classes.names, found.problems) == (("x", *HAM10000.names[2:]), ())


def test_real_data(real_data):
    listing = layouts.read(real_data)
    assert listing.problems == ()
    counts = Counter(HAM10000.names[r.label] for r in listing.records)
    assert len(listing.records) == 5984
    assert [counts[name] for name in HAM10000.names] == [183, 264, 583, 60, 491, 4323, 80]
    assert {r.confirmation for r in listing.records} == {
        "histo",
        "follow_up",
        "consensus",
        "confocal",
    }
    assert all(r.lesion_id.startswith("HAM_") for r in listing.records)


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
        for wanted in (word, INPUT, "HAM10000_metadata.csv", "one folder per class"):
            assert wanted in str(caught.value)


def test_a_folder_too_high_or_too_low_is_named(official):
    for wrong in (official.parent, official / INPUT):
        with pytest.raises(UserError, match=rf"{official} looks right"):
            layouts.read(wrong)


def test_folders_that_are_of_no_class_are_not_taken_for_classes(tmp_path, write):
    for k, name in enumerate(("images", "masks")):
        write["image"](tmp_path / name / f"{k}.png", k)
    with pytest.raises(UserError, match="none of the known layouts"):
        layouts.read(tmp_path)
    (tmp_path / "images").rename(tmp_path / "unmasked")
    assert layouts.read(tmp_path).classes.names == ("masks", "unmasked")
    write["table"](tmp_path / "labels.csv", "file,label", "0,a", "1,b")
    with pytest.raises(UserError, match=r"give --config.data.table=labels.csv"):
        layouts.read(tmp_path)


def test_a_side_of_a_split_is_never_pointed_at(tmp_path, write):
    three_classes(tmp_path / "data" / "test", write)
    three_classes(tmp_path / "data" / "lesions", write)
    (tmp_path / "data" / "train").mkdir()
    (tmp_path / "data" / "test").rename(tmp_path / "data" / "Test")
    shutil.rmtree(tmp_path / "data" / "Test" / "other 9")
    (tmp_path / "up").mkdir()
    (tmp_path / "data" / "lesions").rename(tmp_path / "up" / "lesions")
    with pytest.raises(UserError, match=r"up has none .*lesions looks right"):
        layouts.read(tmp_path / "up")
    shutil.rmtree(tmp_path / "up")
    assert layouts.read(tmp_path / "data").layout == "split folders"


def test_several_layouts_in_one_folder(official, write, labels):
    write["classes"](official, labels)
    with pytest.raises(UserError, match=r"several layouts \(ISIC 2018 Task 3, class folders\)"):
        layouts.read(official)


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
        (",0.0\n", "\n", ["row 2", "7 values", "the header has 8"]),
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
        (b"", ["empty: it needs a header"]),
        (b"image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\n", ["no rows below the header"]),
        ("image,MEL\n".encode("utf-16"), ["UTF-16"]),
        (b"image,MEL\nISIC_1,\xff\xfe\n", ["row 2", "not UTF-8"]),
        (b'image,MEL\n"ISIC_1,0\n', ["not a CSV"]),
    ],
)
def test_tables_that_cannot_be_read(official, content, words):
    (official / TRUTH).write_bytes(content)
    problem = only_problem(official)
    assert problem.startswith(TRUTH)
    assert all(word in problem for word in words), problem


@pytest.mark.parametrize("cell", ["", "NA", "unknown", "?"])
def test_an_image_without_a_lesion_is_a_group_of_its_own(official, cell):
    edit(official / GROUPINGS, "ISIC_0000000,L0", f"ISIC_0000000,{cell}")
    listing = layouts.read(official)
    assert listing.problems == ()
    assert [r.lesion_id for r in listing.records[:2]] == ["ISIC_0000000", "L0"]
    assert listing.notes[0].startswith("1 of 14 images have no lesion, patient or group")


def test_groupings_that_lack_an_image(official):
    edit(official / GROUPINGS, "ISIC_0000000,L0,histopathology\n", "")
    assert only_problem(official).endswith(
        "row 2: no row for ISIC_0000000 in the LesionGroupings file"
    )


def test_bad_metadata(tmp_path, labels, write):
    root = write["ham10000"](tmp_path, labels, "HAM10000_metadata.csv")
    edit(root / "HAM10000_metadata.csv", "ISIC_0000000,akiec", "ISIC_0000000,wart")
    edit(root / "HAM10000_metadata.csv", "41.0", "old")
    problems = layouts.read(root).problems
    assert "row 2: unknown class 'wart' (known: akiec" in problems[0]
    assert "row 3: 'old' is not an age in years" in problems[1]
    assert len(problems) == 2
    edit(root / "HAM10000_metadata.csv", "wart", "")
    assert "row 2: no class '' (known: akiec" in layouts.read(root).problems[0]
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


@pytest.mark.parametrize(
    ("text", "age"),
    [
        *[("85+", 85), ("<5", 5), (">= 80", 80), ("0", 0), ("45.0", 45), ("nan", math.nan)],
        *[("N/A", math.nan), ("inf", None), ("-5", None), ("1e3", None), ("131", None)],
    ],
)
def test_ages(tmp_path, labels, write, text, age):
    root = write["ham10000"](tmp_path, labels, "HAM10000_metadata.csv")
    edit(root / "HAM10000_metadata.csv", "40.0", text)
    if age is None:
        assert (
            only_problem(root) == f"HAM10000_metadata.csv, row 2: {text!r} is not an age in years"
        )
    else:
        found = layouts.read(root).records[0].age
        assert found == age or (math.isnan(age) and math.isnan(found))


def test_other_words_for_sex(tmp_path, labels, write):
    root = write["ham10000"](tmp_path, labels, "HAM10000_metadata.csv")
    for old, new in (("40.0,male", "40.0,F"), ("41.0,male", "41.0,Male"), ("42.0,male", "42.0,?")):
        edit(root / "HAM10000_metadata.csv", old, new)
    assert [r.sex for r in layouts.read(root).records[:4]] == ["female", "male", "", "male"]


def test_bad_class_folders(tmp_path, labels, write):
    root = write["classes"](tmp_path, labels)
    write["image"](root / "wart" / "a.jpg", 0)
    write["image"](root / "loose.jpg", 0)
    write["image"](root / "nv" / "ISIC_0000005.jpg", 0)
    loose, unknown, duplicate = layouts.read(root).problems
    assert loose == "loose.jpg: an image outside the class folders"
    assert duplicate == (
        "nv/ISIC_0000005.png: duplicate image id nv/ISIC_0000005, also nv/ISIC_0000005.jpg"
    )
    assert unknown.startswith("wart: unknown class 'wart' (known: akiec, bcc")
    shutil.rmtree(root / "wart")
    (root / "loose.jpg").unlink()
    (root / "nv" / "ISIC_0000005.jpg").unlink()
    write["image"](root / "wart" / "a.jpg", 0)
    listing = layouts.read(root, Reading(classes=("wart", "nv")))
    assert (listing.problems, listing.classes.names) == ((), ("wart", "nv"))


@pytest.mark.parametrize("name", [".hidden", "a\tb", "grids", "Image", "x" * 101, "a\\b", " a"])
def test_names_that_no_class_can_have(tmp_path, write, name):
    three_classes(tmp_path, write)
    (tmp_path / "other 9").rename(tmp_path / "x")
    problems = layouts.read(tmp_path, Reading(rename=(("x", name),))).problems
    assert problems == (
        f"{name!r} cannot be the name of a class: files and folders are named after it; give "
        "another name with data.rename",
    )


def test_classes_that_differ_only_in_case(tmp_path, write):
    three_classes(tmp_path, write)
    (tmp_path / "other 9").rename(tmp_path / "Malignant")
    assert "'Malignant' and 'malignant' differ only in case" in only_problem(tmp_path)


def test_folders_inside_class_folders_are_never_labelled_by_guess(tmp_path, write):
    three_classes(tmp_path, write)
    write["image"](tmp_path / "malignant" / "patient 7" / "1.png", 90)
    (tmp_path / "malignant" / "up").symlink_to(tmp_path)
    listing = layouts.read(tmp_path)
    assert (len(listing.records), listing.problems) == (12, ())
    assert listing.notes[-1] == (
        "not read: images in malignant/patient 7, inside a class folder (1), links to a folder "
        "around them (1)"
    )
    write["image"](tmp_path / "malignant" / "other 9" / "1.png", 91)
    assert (
        "malignant/other 9: 1 images in a folder inside a class folder, which has the name of a "
        "class"
    ) in only_problem(tmp_path)
    shutil.rmtree(tmp_path / "malignant" / "other 9")
    for path in (tmp_path / "malignant").glob("*.png"):
        path.unlink()
    assert "which has none itself; move them up into malignant" in only_problem(tmp_path)


def test_names_of_masks_are_no_reason_to_guess(tmp_path, write):
    three_classes(tmp_path, write)
    (tmp_path / "other 9").rename(tmp_path / "with masks")
    (tmp_path / "malignant" / "0.png").rename(tmp_path / "malignant" / "pigmask_0_mask.png")
    listing = layouts.read(tmp_path)
    assert (len(listing.records), listing.problems) == (12, ())
    write["image"](tmp_path / "malignant" / "1_segmentation.png", 50)
    assert only_problem(tmp_path) == (
        "malignant: 1 files are named like masks of images next to them, such as "
        "1_segmentation.png; move them out of the class folder"
    )


def test_masks_beside_the_images_of_a_table_are_counted(official, write):
    for number in range(3):
        write["image"](official / INPUT / f"ISIC_{number:07}_superpixels.png", number)
    listing = layouts.read(official)
    assert (len(listing.records), listing.problems) == (14, ())
    assert listing.notes == ("not read: masks of other images (3)",)


def test_what_is_not_read_is_counted(official):
    for name in ("a.heic", "b.heic", "c.dcm", "noending", ".hidden", "Thumbs.db", "desktop.ini"):
        (official / INPUT / name).touch()
    os.mkfifo(official / INPUT / "pipe.jpg")
    (official / "scan.jpg").touch()
    (official / "__MACOSX").mkdir()
    (official / "old").mkdir()
    (note,) = layouts.read(official).notes
    assert note == (
        "not read: *.dcm (1), *.heic (2), *.jpg (1), devices or pipes (1), files without an ending "
        "(1), the folder old"
    )


@pytest.mark.parametrize("ending", ["jfif", "JPE", "gif", "webp", "ppm"])
def test_other_endings_that_prediction_reads(tmp_path, labels, write, ending):
    root = write["classes"](tmp_path, labels)
    (root / "nv" / "ISIC_0000005.png").rename(root / "nv" / f"ISIC_0000005.{ending}")
    assert (len(layouts.read(root).records), layouts.read(root).notes) == (14, ())


def test_ids_with_endings_are_matched(official, labels):
    for image_id in labels:
        edit(official / TRUTH, f"{image_id},", f"{image_id}.jpg,")
    assert {r.image_id for r in layouts.read(official).records} == set(labels)
    edit(official / TRUTH, "ISIC_0000001.jpg,", "ISIC_0000000,")
    assert "the same image as in" in " ".join(layouts.read(official).problems)


def test_ids_that_differ_in_case_are_pointed_out_once(official):
    for path in (official / INPUT).glob("*.jpg"):
        path.rename(path.with_name(path.name.lower()))
    assert only_problem(official).startswith(
        f"14 ids in {TRUTH} differ from the names of their files only in upper and lower case or "
        f"in the form of accents, such as ISIC_0000000 ({TRUTH}, row 2) and {INPUT}/isic_0000000"
    )


@pytest.mark.parametrize("name", ["a\nb", "a ", "\udcff"])
def test_ids_that_no_file_keeps_are_refused(tmp_path, write, name):
    three_classes(tmp_path, write)
    (tmp_path / "malignant" / "0.png").rename(tmp_path / "malignant" / f"{name}.png")
    assert "rename it" in only_problem(tmp_path)


def test_all_problems_are_collected(official, write):
    edit(official / TRUTH, "1.0", "2.0")
    (official / INPUT / "ISIC_0000004.jpg").unlink()
    write["image"](official / INPUT / "ISIC_8.jpg", 0)
    assert len(layouts.read(official).problems) == 3
