import numpy as np
import pytest

from skin_jax.base.errors import BAD_INPUT, UserError
from skin_jax.data.classes import HAM10000, Classes
from skin_jax.eval import tables

HEADER = "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\n"


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_predictions_read_back_exactly(tmp_path):
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(len(HAM10000), 0.05), 200)
    probabilities[0] = np.eye(len(HAM10000))[2]
    ids = [f"ISIC_{i}" for i in range(199)] + ["with, comma and é"]
    tables.write_predictions(tmp_path / "new" / "p.csv", ids, probabilities, HAM10000)
    found = tables.read_predictions(tmp_path / "new" / "p.csv", HAM10000)
    assert found.image_ids == ids
    assert (found.probabilities == probabilities).all()


def test_columns_are_the_challenges_and_scores_are_floats(tmp_path):
    row = np.array([[0.1, 0.2, 0.3, 0.0, 0.4, 0.0, 0.0]])
    tables.write_predictions(tmp_path / "p.csv", ["a"], row, HAM10000)
    assert (tmp_path / "p.csv").read_text() == HEADER + "a,0.4,0.0,0.2,0.1,0.3,0.0,0.0\n"


def test_rounding_errors_are_cut_and_anything_worse_refused(tmp_path):
    row = np.full((1, len(HAM10000)), -1e-9)
    row[0, 0] = 1 + 1e-9
    tables.write_predictions(tmp_path / "p.csv", ["a"], row, HAM10000)
    assert (
        tables.read_predictions(tmp_path / "p.csv", HAM10000).probabilities[0].tolist()
        == [1] + [0] * 6
    )
    for bad in (1.01, -0.01, np.nan):
        row[0, 0] = bad
        with pytest.raises(ValueError, match="within"):
            tables.write_predictions(tmp_path / "p.csv", ["a"], row, HAM10000)
    with pytest.raises(ValueError, match="repeat"):
        tables.write_predictions(tmp_path / "p.csv", ["a", "a"], np.zeros((2, 7)), HAM10000)
    with pytest.raises(ValueError, match="do not fit"):
        tables.write_predictions(tmp_path / "p.csv", ["a"], np.zeros((2, 7)), HAM10000)


def test_columns_may_stand_in_any_order_with_others_between_and_a_byte_order_mark(tmp_path):
    text = (
        "\ufeffVASC,score_weight,image,MEL,NV,BCC,AKIEC,BKL,DF\r\n0.7,1,a,0.1,0,0,0,0,0.2\r\n\r\n"
    )
    found = tables.read_predictions(write(tmp_path / "p.csv", text), HAM10000)
    assert found.image_ids == ["a"]
    assert found.probabilities.tolist() == [[0, 0, 0, 0.2, 0.1, 0, 0.7]]


def test_a_missing_and_a_repeated_column_are_named(tmp_path):
    path = write(tmp_path / "p.csv", "image,MEL,MEL,BCC,AKIEC,BKL,DF,VASC\n")
    with pytest.raises(UserError) as caught:
        tables.read_predictions(path, HAM10000)
    for part in (str(path), "column NV: missing", "column MEL: given twice", "2 problems"):
        assert part in str(caught.value)
    assert caught.value.exit_code == BAD_INPUT


def test_all_problems_of_the_rows_are_collected_with_row_and_column(tmp_path):
    rows = [
        "a,1,0,0,0,0,0,0",
        "a,0,1,0,0,0,0,0",
        "b,0,x,0,0,0,0,0",
        "c,0,0,1.5,0,0,0,nan",
        ",0,0,0,1,0,0,0",
        "d,0,0,0",
        "e,0,0,0,0,0,,1",
    ]
    with pytest.raises(UserError) as caught:
        tables.read_predictions(write(tmp_path / "p.csv", HEADER + "\n".join(rows)), HAM10000)
    for part in (
        "7 problems",
        "row 3, column image: a is already in row 2",
        "row 4, column NV: 'x' is no number",
        "row 5, column BCC: 1.5 is not within [0, 1]",
        "row 5, column VASC: nan is not within [0, 1]",
        "row 6, column image: empty",
        "row 7: 4 values, the header has 8",
        "row 8, column DF: '' is no number",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("content", [b"", HEADER.encode(), b"\xff\xfe\x00", b'image,"MEL'])
def test_files_without_rows_or_that_are_no_csv_are_refused(tmp_path, content):
    (tmp_path / "p.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"p\.csv"):
        tables.read_predictions(tmp_path / "p.csv", HAM10000)


def test_a_missing_file_or_a_folder_is_said_to_be_unreadable(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            tables.read_truth(path, HAM10000)


def test_truth_rows_must_be_one_hot(tmp_path):
    rows = ["a,1.0,0.0,0,0,0,0,0", "b,0,0,0,0,0,0,0", "c,1,1,0,0,0,0,0", "d,0.5,0.5,0,0,0,0,0"]
    with pytest.raises(UserError) as caught:
        tables.read_truth(write(tmp_path / "t.csv", HEADER + "\n".join(rows)), HAM10000)
    assert "3 problems" in str(caught.value)
    assert "image b: its row is not a single 1 and otherwise 0" in str(caught.value)
    truth = tables.read_truth(
        write(tmp_path / "t.csv", HEADER + rows[0] + "\nb,0,0,0,1,0,0,0\n"), HAM10000
    )
    assert truth.labels.tolist() == [4, 0]


@pytest.mark.parametrize("spelled", ["A.jpg", "a.JPG", "A", " a"])
def test_ids_that_nearly_match_are_said_once(tmp_path, spelled):
    scores = write(tmp_path / "p.csv", HEADER + f"{spelled},1,0,0,0,0,0,0\nb,1,0,0,0,0,0,0")
    truth = write(tmp_path / "t.csv", HEADER + "a,1,0,0,0,0,0,0\nb,1,0,0,0,0,0,0")
    with pytest.raises(UserError, match=r"1 problem.*\n.*1 ids differ only in case, in spaces or"):
        tables.join(scores, truth, HAM10000)


def test_decimal_commas_and_errors_of_rounding(tmp_path):
    head = HEADER.replace(",", ";")
    rows = "a;0,25;0,75;0;0;0;0;0\nb;1.0000001;-1e-09;0;0;0;0;0"
    found = tables.read_predictions(write(tmp_path / "p.csv", head + rows), HAM10000)
    mel, nv = HAM10000.index("mel"), HAM10000.index("nv")
    assert found.probabilities[:, [mel, nv]].tolist() == [[0.25, 0.75], [1.0, 0.0]]


def test_a_pair_is_joined_by_id_in_the_order_of_the_truth(tmp_path):
    p = write(tmp_path / "p.csv", HEADER + "b,0,1,0,0,0,0,0\na,0.9,0,0,0,0,0,0\n")
    t = write(tmp_path / "t.csv", HEADER + "a,1,0,0,0,0,0,0\nb,0,1,0,0,0,0,0\n")
    found, truth = tables.join(p, t, HAM10000)
    assert found.image_ids == truth.image_ids == ["a", "b"]
    assert found.probabilities.argmax(axis=1).tolist() == truth.labels.tolist() == [4, 5]
    assert found.probabilities[0, 4] == 0.9


def test_ids_that_only_one_of_a_pair_has_are_listed_with_the_file_that_lacks_them(tmp_path):
    p = write(tmp_path / "p.csv", HEADER + "a,0,1,0,0,0,0,0\nx,0,1,0,0,0,0,0\n")
    t = write(tmp_path / "t.csv", HEADER + "a,1,0,0,0,0,0,0\ny,0,1,0,0,0,0,0\n")
    with pytest.raises(UserError) as caught:
        tables.join(p, t, HAM10000)
    assert f"image x: no row in {t}" in str(caught.value)
    assert f"image y: no row in {p}" in str(caught.value)


THREE = Classes.of(("benign-nevus", "malignant", "other"))


def test_other_classes_have_their_own_columns(tmp_path):
    rows = np.array([[0.1, 0.2, 0.7], [1.0, 0.0, 0.0]])
    tables.write_predictions(tmp_path / "p.csv", ["x/1", "y/1"], rows, THREE)
    text = (tmp_path / "p.csv").read_text()
    assert text == "image,benign-nevus,malignant,other\nx/1,0.1,0.2,0.7\ny/1,1.0,0.0,0.0\n"
    found = tables.read_predictions(tmp_path / "p.csv", THREE)
    assert found.probabilities.tolist() == rows.tolist()
    with pytest.raises(UserError, match="column MEL: missing"):
        tables.read_predictions(tmp_path / "p.csv", HAM10000)
    with pytest.raises(ValueError, match="do not fit"):
        tables.write_predictions(tmp_path / "p.csv", ["a"], np.zeros((1, 7)), THREE)


@pytest.mark.parametrize(
    ("predicted", "true", "names"),
    [
        (HEADER, "image,NV,MEL,BCC,AKIEC,BKL,DF,VASC,score_weight,validation_weight\n", "ham"),
        (HEADER.replace("\n", ",note\n"), HEADER.replace("\n", ",SCC\n"), "ham"),
        ("b,image,a\n", "image,a,b,score_weight\n", ("a", "b")),
        (
            "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC\n",
            "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC\n",
            ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC"),
        ),
    ],
)
def test_the_classes_of_a_pair_are_those_of_the_headers(tmp_path, predicted, true, names):
    p, t = write(tmp_path / "p.csv", predicted), write(tmp_path / "t.csv", true)
    expected = HAM10000 if names == "ham" else Classes.of(names)
    assert tables.classes_of(p, t) == expected


@pytest.mark.parametrize(
    ("predicted", "true", "words"),
    [
        (HEADER.replace("\n", ",SCC\n"), HEADER.replace("\n", ",SCC\n"), r"columns and SCC: it is"),
        (
            "image,a,b\n",
            "image,a,c\n",
            r"p\.csv \(a, b\) and .*t\.csv \(a, c\) have to be the same",
        ),
        ("image,a\n", "image,a\n", "two or more"),
        ("", "image,a,b\n", r"p\.csv is no table of classes"),
        (HEADER, "image,a,b\n", "have to be the same"),
    ],
)
def test_headers_that_leave_the_classes_open_are_refused(tmp_path, predicted, true, words):
    p, t = write(tmp_path / "p.csv", predicted), write(tmp_path / "t.csv", true)
    with pytest.raises(UserError, match=words) as caught:
        tables.classes_of(p, t)
    assert caught.value.exit_code == BAD_INPUT
