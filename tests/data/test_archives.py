"""The archives of other data sets, made small: their names and columns are public."""

import dataclasses
import threading
from collections import Counter

import numpy as np
import pytest

from skin_jax.base.errors import UserError
from skin_jax.data import images, layouts, splits, store
from skin_jax.data.classes import HAM10000, ISIC_2019, ISIC_2020, PAD_UFES_20
from skin_jax.data.reading import Reading

HOT_2019 = "image MEL NV BCC AK BKL DF VASC SCC UNK"


def hot(image_id: str, name: str, columns: str) -> str:
    return " ".join([image_id, *(f"{float(c == name)}" for c in columns.split()[1:])])


@pytest.fixture
def isic_2019(tmp_path, write):
    names = ["MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC"]
    ids = [f"ISIC_{k:07}" + "_downsampled" * (k == 3) for k in range(8)]
    for k, image_id in enumerate(ids):
        write["image"](tmp_path / "ISIC_2019_Training_Input" / f"{image_id}.jpg", k)
    write["table"](
        tmp_path / "ISIC_2019_Training_GroundTruth.csv",
        HOT_2019,
        *(hot(image_id, name, HOT_2019) for image_id, name in zip(ids, names, strict=True)),
    )
    lesions = ["BCN_1", "BCN_1", "_", "HAM_2", "_", "HAM_2", "MSK_3", "MSK_4"]
    write["table"](
        tmp_path / "ISIC_2019_Training_Metadata.csv",
        "image age_approx anatom_site_general lesion_id sex",
        *(f"{i} 55.0 torso {lesion} female" for i, lesion in zip(ids, lesions, strict=True)),
    )
    return tmp_path


def test_isic_2019(isic_2019, write):
    listing = layouts.read(isic_2019)
    assert (listing.layout, listing.problems, listing.unit) == ("ISIC 2019", (), "lesion")
    assert listing.classes is ISIC_2019
    first, second, third, *_ = listing.records
    assert [listing.classes.names[r.label] for r in (first, second, third)] == ["mel", "nv", "bcc"]
    assert (first.lesion_id, second.lesion_id, third.lesion_id) == (
        "BCN_1",
        "BCN_1",
        "ISIC_0000002",
    )
    assert (first.age, first.sex, first.localization) == (55, "female", "torso")
    assert listing.notes[0].startswith("2 of 8 images have no lesion")

    write["image"](isic_2019 / "ISIC_2019_Test_Input" / "ISIC_T.jpg", 90)
    write["image"](isic_2019 / "ISIC_2019_Test_Input" / "ISIC_U.jpg", 91)
    write["table"](
        isic_2019 / "ISIC_2019_Test_GroundTruth.csv",
        f"{HOT_2019} score_weight",
        hot("ISIC_T", "SCC", HOT_2019) + " 1.0",
        hot("ISIC_U", "UNK", HOT_2019) + " 1.0",
    )
    write["table"](
        isic_2019 / "ISIC_2019_Test_Metadata.csv",
        "image age_approx anatom_site_general sex",
        "ISIC_T 85+ _ male",
    )
    listing = layouts.read(isic_2019)
    assert listing.problems == ()
    (test,) = [r for r in listing.records if r.official_split == "test"]
    assert (test.image_id, test.age, test.lesion_id) == ("ISIC_T", 85, "ISIC_T")
    assert "images of other classes are left out: 1 of UNK" in listing.notes
    with_unknown = Reading(classes=("unk", "scc"), rename=(("UNK", "unk"),))
    assert len(layouts.read(isic_2019, with_unknown).records) == 3


@pytest.fixture
def isic_2020(tmp_path, write):
    for k in range(4):
        write["image"](tmp_path / "jpeg" / "train" / f"ISIC_{k}.jpg", k)
        write["image"](tmp_path / "jpeg" / "test" / f"ISIC_9{k}.jpg", 10 + k)
    write["table"](
        tmp_path / "train.csv",
        "image_name patient_id sex age_approx anatom_site_general_challenge diagnosis "
        "benign_malignant target",
        "ISIC_0 IP_1 male 45.0 torso unknown benign 0",
        "ISIC_1 IP_2 female 50.0 _ melanoma malignant 1",
        "ISIC_2 IP_1 _ _ torso nevus benign 0",
        "ISIC_3 _ male 45.0 torso unknown benign 0",
    )
    return tmp_path


@pytest.mark.parametrize("images_in", ["jpeg", "train", "ISIC_2020_Training_JPEG/train"])
def test_isic_2020(isic_2020, images_in):
    if images_in != "jpeg":
        target = isic_2020 / images_in
        target.parent.mkdir(exist_ok=True)
        (isic_2020 / "jpeg" / "train").rename(target)
    listing = layouts.read(isic_2020)
    assert (listing.layout, listing.problems, listing.unit) == ("ISIC 2020", (), "patient")
    assert listing.classes is ISIC_2020
    assert [r.label for r in listing.records] == [0, 1, 0, 0]
    assert [r.lesion_id for r in listing.records] == ["IP_1", "IP_2", "IP_1", "ISIC_3"]


def test_isic_2020_with_contradictions(isic_2020):
    table = isic_2020 / "train.csv"
    table.write_text(table.read_text().replace("malignant,1", "malignant,0"))
    assert layouts.read(isic_2020).problems == (
        "train.csv, row 3: benign_malignant is 'malignant', but target is '0'",
    )


def test_isic_2020_with_its_lesions_and_the_target_alone(isic_2020, write):
    (isic_2020 / "train.csv").unlink()
    write["table"](
        isic_2020 / "ISIC_2020_Training_GroundTruth_v2.csv",
        "image_name patient_id lesion_id target",
        *("ISIC_0 IP_1 IL_1 0", "ISIC_1 IP_2 IL_2 1.0", "ISIC_2 _ IL_2 0", "ISIC_3 _ IL_3 0.0"),
    )
    listing = layouts.read(isic_2020)
    assert listing.problems == ()
    assert [r.label for r in listing.records] == [0, 1, 0, 0]
    assert [r.lesion_id for r in listing.records] == ["IP_1", "IP_2", "IP_2", "IL_3"]


def test_pad_ufes_20(tmp_path, write):
    names = ["ACK", "BCC", "MEL", "NEV", "SCC", "SEK"]
    rows = []
    for k, name in enumerate(names):
        image_id = f"PAT_{k // 2}_{k}_{k}.png"
        write["image"](tmp_path / "images" / f"imgs_part_{1 + k % 3}" / image_id, k)
        rows.append(f"PAT_{k // 2} {100 + k // 3} {30 + k} FEMALE FACE {name} {image_id} True")
    header = "patient_id lesion_id age gender region diagnostic img_id biopsed"
    write["table"](tmp_path / "metadata.csv", header, *rows)
    listing = layouts.read(tmp_path)
    assert (listing.layout, listing.problems, listing.unit) == ("PAD-UFES-20", (), "patient")
    assert listing.classes is PAD_UFES_20
    first = listing.records[0]
    assert (first.image_id, first.sex, first.confirmation) == ("PAT_0_0_0", "female", "histo")
    assert [r.label for r in listing.records] == list(range(6))
    # Lesion 100 is of patients 0 and 1, lesion 101 of 1 and 2: nothing of that may be parted.
    assert {r.lesion_id for r in listing.records} == {"PAT_0"}


def write_npz(path, sizes, shape=(28, 28, 3)):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in sizes.items():
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, *shape), np.uint8)
        arrays[f"{split}_labels"] = np.arange(n, dtype=np.uint8)[:, None] % 7
    np.savez_compressed(path, **arrays)
    return arrays


def test_dermamnist(tmp_path):
    file = tmp_path / "dermamnist.npz"
    arrays = write_npz(file, {"train": 14, "val": 7, "test": 7})
    for folder in (tmp_path, file):
        listing = layouts.read(folder)
        assert (listing.layout, listing.problems, listing.unit) == ("DermaMNIST", (), "image")
        assert listing.classes is HAM10000
    options = {"image_size": 28, "cache_dir": tmp_path / "cache", "progress": False}
    examples = store.prepare(file, **options)
    by_id = {
        r.image_id: (r, image) for r, image in zip(examples.records, examples.images, strict=True)
    }
    assert len(by_id) == 28
    record, image = by_id["train_000008"]
    assert (record.label, record.official_split) == (1, "train")
    np.testing.assert_array_equal(image, arrays["train_images"][8])
    np.testing.assert_array_equal(by_id["val_000006"][1], arrays["val_images"][6])
    official = {"split": "official", "fractions": (0.7, 0.1, 0.2), "split_seed": 0, "fold": None}
    assert Counter(splits.draw(examples.records, **official)) == {"train": 14, "val": 7, "test": 7}
    assert store.prepare(file, **options | {"image_size": 14}).images.shape == (28, 14, 14, 3)


def test_damaged_and_several_files_of_dermamnist(tmp_path):
    file = tmp_path / "dermamnist.npz"
    write_npz(file, {"train": 3, "val": 3})
    assert "not a file of DermaMNIST: no array test_images" in layouts.read(file).problems[0]
    arrays = write_npz(file, {"train": 3, "val": 3, "test": 3})
    np.savez(file, **arrays | {"val_images": np.zeros((2, 4, 4, 3), np.float32)})
    assert layouts.read(file).problems == (
        "dermamnist.npz: val_images are float32 [2, 4, 4, 3], which do not fit 3 labels",
    )
    file.write_bytes(b"x")
    assert len(layouts.read(file).problems) == 3
    write_npz(tmp_path / "dermamnist_64.npz", {"train": 3})
    with pytest.raises(UserError, match="pass the file that is meant"):
        layouts.read(tmp_path)


def test_rows_of_an_array_in_any_order_from_several_threads(tmp_path):
    arrays = write_npz(tmp_path / "a.npz", {"train": 600}, shape=(2, 2, 3))["train_images"]
    rows = images.Rows(tmp_path / "a.npz", "train_images")
    for number in (599, 0, 5, 4, 300):
        np.testing.assert_array_equal(rows.read(number), arrays[number])
    wrong = []

    def read(start):
        wrong.extend(n for n in range(start, 600, 4) if (rows.read(n) != arrays[n]).any())

    threads = [threading.Thread(target=read, args=[start]) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_grey_images_of_an_array(tmp_path):
    arrays = write_npz(tmp_path / "a.npz", {"train": 2}, shape=(4, 4))["train_images"]
    pixels = images.decode(tmp_path / "a.npz" / "train_images" / "1", 4)
    np.testing.assert_array_equal(pixels, np.repeat(arrays[1][..., None], 3, axis=2))


def test_known_classes_fit_their_columns():
    for known in (HAM10000, ISIC_2019, ISIC_2020, PAD_UFES_20):
        lists = [getattr(known, f.name) for f in dataclasses.fields(known) if f.name != "focus"]
        assert {len(part) for part in lists} == {len(known)}
        assert known.focus in known.names
        assert sorted(known.column_order) == list(range(len(known)))
