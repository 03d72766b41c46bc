import dataclasses

import numpy as np
import pytest
from PIL import Image

from skin_jax.base.errors import UserError
from skin_jax.data import generated as generated_lib
from skin_jax.data import splits
from skin_jax.data.classes import HAM10000, Classes
from skin_jax.data.examples import Record

ROW = generated_lib.Generated(
    image="df/df_3_12.png",
    label="df",
    index=12,
    confidence=0.1 + 0.2,  # a number that only its shortest exact form gives back
    seed=3,
    step=982,
    run="demo, the first-2cfbe4b644bb",
    train_split="0123456789abcdef" * 4,
)
ROWS = [
    ROW,
    dataclasses.replace(ROW, image="mel/mel_3_14.png", label="mel", index=14, confidence=1.0),
]


@pytest.fixture
def folder(tmp_path):
    for row in ROWS:
        path = tmp_path / row.image
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    generated_lib.write(tmp_path, ROWS)
    return tmp_path


def replace(folder, old, new):
    path = folder / generated_lib.MANIFEST
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_round_trip(folder):
    assert generated_lib.read(folder, HAM10000) == ROWS
    first = (folder / "manifest.csv").read_text().splitlines()[0]
    assert first == "image,label,index,confidence,seed,step,run,train_split"


def test_grids_and_other_kinds_of_files_are_no_images_of_a_class(folder):
    (folder / "grids").mkdir()
    (folder / "grids" / "df.png").write_bytes(b"")
    (folder / "generation.json").write_text("{}")
    (folder / "df" / ".DS_Store").write_text("")
    assert generated_lib.read(folder, HAM10000) == ROWS


def test_an_unfinished_folder_has_no_manifest_and_says_so(folder):
    (folder / "manifest.csv").unlink()
    with pytest.raises(UserError, match="or not all of them yet"):
        generated_lib.read(folder, HAM10000)
    with pytest.raises(UserError, match="does not exist; give a folder"):
        generated_lib.read(folder / "nowhere", HAM10000)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("image,label", "label,image", "its columns are label,image,index"),
        (",step,", ",steps,", "not image,label,index"),
        (",df,", ",wart,", "row 2, column label: 'wart' is not a class"),
        (",df,", ",mel,", "row 2, column label: mel, but df/df_3_12.png lies in another folder"),
        (",df,", ",df,0,", "row 2: 9 values, the header has 8"),
        (",12,", ",-12,", "row 2, column index: '-12' is not a whole number"),
        (",0.3000", ",1.3000", "row 2, column confidence: '1.3000"),
        (",0.30000000000000004", ",nan", "column confidence: 'nan' is not a number in"),
        (",982,", ",last,", "column step: 'last'"),
        ('"demo, the first-2cfbe4b644bb"', "", "column run: ''"),
        ("abcdef\n", "\n", "column train_split: '0123"),
        ("mel/mel_3_14.png,mel", "df/df_3_12.png,df", "row 3, column image: df/df_3_12.png has a"),
        ("df/df_3_12.png", "../df_3_12.png", "row 2, column label: df, but"),
        ('"demo', 'demo"', None),  # no CSV any more, or other cells
    ],
)
def test_damaged_manifests_are_refused(folder, old, new, words):
    replace(folder, old, new)
    with pytest.raises(UserError) as caught:
        generated_lib.read(folder, HAM10000)
    assert words is None or words in str(caught.value)


def test_all_problems_are_told_at_once(folder):
    (folder / ROWS[0].image).unlink()
    for extra in ("mel/more.png", "loose.jpg", "nv/deeper/x.webp"):
        (folder / extra).parent.mkdir(parents=True, exist_ok=True)
        (folder / extra).write_bytes(b"")
    replace(folder, ",mel,", ",melanoma,")
    with pytest.raises(UserError) as caught:
        generated_lib.read(folder, HAM10000)
    message = str(caught.value)
    assert "(5 problems)" in message
    for problem in (
        "row 3, column label: 'melanoma'",
        "df/df_3_12.png: in the manifest, but not in the folder",
        "mel/more.png: in the folder, but not in the manifest",
        "loose.jpg: in the folder",
        "nv/deeper/x.webp: in the folder",
    ):
        assert problem in message


def test_hidden_files_and_litter_are_passed_over(folder):
    rows = generated_lib.read(folder, HAM10000)
    image = next(folder.glob("mel/*.png"))
    for litter in (f"mel/._{image.name}", f"mel/.ipynb_checkpoints/{image.name}", "__MACOSX/a.png"):
        (folder / litter).parent.mkdir(exist_ok=True)
        (folder / litter).write_bytes(image.read_bytes())
    assert generated_lib.read(folder, HAM10000) == rows


def test_a_manifest_without_rows_or_not_in_utf_8_is_refused(tmp_path):
    generated_lib.write(tmp_path, [])
    with pytest.raises(UserError, match="no rows below the header"):
        generated_lib.read(tmp_path, HAM10000)
    (tmp_path / "manifest.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot read the manifest"):
        generated_lib.read(tmp_path, HAM10000)


def rows_of(name, indices):
    return [
        dataclasses.replace(ROW, image=f"{name}/{name}_3_{i}.png", label=name, index=i)
        for i in indices
    ]


def test_the_ratio_takes_the_images_with_the_lowest_index_of_each_class():
    rows = [*rows_of("df", [10, 9, 2, 30]), *rows_of("mel", [4, 1]), *rows_of("vasc", [5])]
    real = np.zeros(7, int)
    real[[HAM10000.index("df"), HAM10000.index("mel")]] = [5, 10]

    def taken(ratio):
        return [
            row.image.split("_", 1)[1] for row in generated_lib.at_most(rows, real, ratio, HAM10000)
        ]

    by_name = ["3_10.png", "3_2.png", "3_30.png", "3_9.png", "3_1.png", "3_4.png", "3_5.png"]
    assert taken(None) == by_name
    assert taken(0.5) == ["3_10.png", "3_2.png", "3_9.png", "3_1.png", "3_4.png"]  # 2.5 are 3
    assert taken(0.1) == ["3_2.png", "3_1.png"]
    assert taken(0.0) == []
    assert generated_lib.at_most(rows[::-1], real, None, HAM10000) == generated_lib.at_most(
        rows, real, None, HAM10000
    )


def test_images_come_at_the_size_that_is_asked_for(folder):
    Image.fromarray(np.full((8, 6, 3), 200, np.uint8)).save(folder / ROWS[1].image)
    examples = generated_lib.load(folder, ROWS, 4, HAM10000)
    assert examples.images.dtype == np.uint8
    np.testing.assert_array_equal(examples.images[1], np.full((4, 4, 3), 200))
    np.testing.assert_array_equal(examples.labels, [HAM10000.index("df"), HAM10000.index("mel")])
    assert [record.image_id for record in examples.records] == [row.image for row in ROWS]
    assert generated_lib.load(folder, [], 4, HAM10000).images.shape == (0, 4, 4, 3)


def test_the_digest_is_of_names_labels_and_pixels(folder):
    digests = {
        generated_lib.load(folder, rows, 4, HAM10000).digest for rows in (ROWS, ROWS[:1], [])
    }
    Image.fromarray(np.full((4, 4, 3), 1, np.uint8)).save(folder / ROWS[0].image)
    assert len(digests | {generated_lib.load(folder, ROWS, 4, HAM10000).digest}) == 4


def test_every_image_that_cannot_be_decoded_is_named(folder):
    for row in ROWS:
        (folder / row.image).write_bytes(b"no image")
    with pytest.raises(UserError, match=r"(?s)2 problems.*df_3_12\.png: .*mel_3_14\.png: "):
        generated_lib.load(folder, ROWS, 4, HAM10000)


def test_digest_of_a_training_split(tmp_path):
    records = [Record(f"i{k}", k % 7, f"l{k}", 50.0, "", "", "", "train") for k in range(14)]
    sides = np.array(["train", "test"] * 7)
    splits.write(tmp_path / "splits.csv", records, sides, HAM10000)
    members = splits.members(tmp_path / "splits.csv", "train")
    assert members == [(f"i{k}", HAM10000.names[k % 7]) for k in range(0, 14, 2)]
    assert splits.members_of(records, sides, "train", HAM10000) == members
    digest = generated_lib.train_split_digest(members)
    assert digest == generated_lib.train_split_digest(reversed(members))
    assert len(digest) == 64
    others = [
        members[1:],
        [*members, ("i1", "bcc")],
        [("i0", "nv"), *members[1:]],
        splits.members(tmp_path / "splits.csv", "test"),
    ]
    assert digest not in map(generated_lib.train_split_digest, others)
    # printf 'a,df\nb,mel\n' | sha256sum: manifests outlive the code.
    known = "1565d9d7f964d9658df05eda8d698e2cc79c9b1f30ce2b6df1245526d8645d6b"
    assert generated_lib.train_split_digest([("b", "mel"), ("a", "df")]) == known


def test_classes_of_any_names(tmp_path):
    odd = Classes.of(["a.b [1]", "été, two"])
    rows = [
        dataclasses.replace(ROW, image=f"{name}/{name}_3_{k}.png", label=name, index=k)
        for k, name in enumerate(odd.names)
    ]
    for row in rows:
        path = tmp_path / row.image
        path.parent.mkdir()
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    generated_lib.write(tmp_path, rows)
    assert generated_lib.read(tmp_path, odd) == rows
    assert generated_lib.load(tmp_path, rows, 4, odd).labels.tolist() == [0, 1]
    replace(tmp_path, "a.b [1],", "axb [1],")  # no pattern
    with pytest.raises(UserError, match=r"'axb \[1\]' is not a class \(a\.b \[1\], été, two\)"):
        generated_lib.read(tmp_path, odd)
