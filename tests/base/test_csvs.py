import random

import pytest

from skin_jax.base import csvs


def parse(content, **options):
    problems = []
    header, rows = csvs.parse(content, problems, **options)
    return header, [(row.number, list(row.values.values())) for row in rows], problems


@pytest.mark.parametrize("separator", [",", "\t", ";"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_separators_line_ends_and_marks(separator, end, mark):
    lines = ["id,age", '"a",1', "", "b,2", ""]
    text = mark + end.join(lines).replace(",", separator)
    header, rows, problems = parse(text.encode())
    assert (header, problems) == (("id", "age"), [])
    assert rows == [(2, ["a", "1"]), (4, ["b", "2"])]


def test_the_header_alone_decides_on_the_separator_and_quotes_hide_it():
    assert parse(b'"a;b",c\n1;2,3\n')[:2] == (("a;b", "c"), [(2, ["1;2", "3"])])
    assert parse(b"a;b\n0,5;1\n")[:2] == (("a", "b"), [(2, ["0,5", "1"])])
    assert parse(b"a,b\tc\n1,2\t3\n")[:2] == (("a,b", "c"), [(2, ["1,2", "3"])])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty: it needs a header with id"]),
        (b"id\n", ["no rows below the header"]),
        (b"id,x\na,\xff\n", ["row 2: not UTF-8 text"]),
        ("id,x\na,b\n".encode("utf-16"), ["UTF-16 text", "UTF-8"]),
        ("id,x\na,b\n".encode("utf-16-le"), ["UTF-16 text"]),
        (b'id,x\n"a,b\n', ["not a CSV file"]),
        (b"x,y\na,b\n", ["row 1, column id: missing (there are x, y)"]),
        (b"id,x,x\na,b,c\n", ["row 1, column x: given twice"]),
        (b"id,x\na\nb,c,d\n", ["row 2: 1 values, the header has 2", "row 3: 3 values"]),
    ],
)
def test_what_is_wrong_is_said_with_its_place(content, words):
    _, _, problems = parse(content, columns=["id"])
    assert len(problems) == len(words) or len(problems) == 1
    assert all(word in " | ".join(problems) for word in words), problems


def test_columns_without_a_name_may_repeat():
    assert parse(b"id,,\na,,\n")[2] == []


def test_strip():
    assert parse(b" id , x\n a ,b \n", strip=True)[:2] == (("id", "x"), [(2, ["a", "b"])])
    assert parse(b"id\n a \n")[1] == [(2, [" a "])]


def test_what_is_written_is_read_back():
    letters = ["a", "0", " ", ",", ";", "\t", '"', "'", "\n", "\r", "é", "\ufeff", "|", "\\", "#"]
    random_ = random.Random(0)
    for _ in range(500):
        width = random_.randint(1, 4)
        rows = [
            ["".join(random_.choices(letters, k=random_.randint(0, 4))) for _ in range(width)]
            for _ in range(3)
        ]
        rows[0] = [f"{i}{cell}" for i, cell in enumerate(rows[0])]  # distinct
        rows = [row for row in rows if any(cell.strip() for cell in row)]
        header, found, problems = parse(csvs.text(rows).encode())
        assert [list(header), *(cells for _, cells in found)] == rows
        assert problems == (["no rows below the header"] if len(rows) == 1 else [])


def test_plain_tables_are_written_plainly():
    assert csvs.text([("image", "x"), ("a,b", 0.1)]) == 'image,x\n"a,b",0.1\n'


@pytest.mark.parametrize("cell", ["", " ", "NA", "n/a", "NaN", "None", "null", "Unknown", "?"])
def test_missing(cell):
    assert csvs.is_missing(cell)


@pytest.mark.parametrize("cell", ["0", "nav", "-", "unknown primary"])
def test_not_missing(cell):
    assert not csvs.is_missing(cell)


@pytest.mark.parametrize(("cell", "odd"), [("é ü 皮", False), ("a\n", True), ("a\udcff", True)])
def test_odd(cell, odd):
    assert csvs.is_odd(cell) is odd
