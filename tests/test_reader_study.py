"""A study from end to end; a reader's table is made as the page's script makes it."""

import csv
import functools
import html
import io
import json
import re
import shutil
import subprocess
import sys
import tomllib
from base64 import b64decode
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skin_jax.base.errors import UserError
from skin_jax.data import generated as generated_lib
from skin_jax.data import splits
from skin_jax.data.classes import HAM10000
from skin_jax.data.generated import Generated
from skin_jax.eval import reader_items
from skin_jax.training.run import SPLITS_FILE, reopen

ROOT = Path(__file__).parents[1]
N = 4

pytestmark = pytest.mark.xdist_group("small_gan")  # one worker trains it, once


@pytest.fixture(scope="session")
def study_with(called):
    return functools.partial(called, "reader_study")


def fill(folder, workdir, per_class, size=32, train_split=None):
    """A folder as skin_jax.generate leaves it, of noise."""
    mine = generated_lib.train_split_digest(splits.members(workdir / SPLITS_FILE, "train"))
    rng = np.random.default_rng(0)
    rows = []
    for name, count in per_class.items():
        for i in range(count):
            image = f"{name}/{name}_0_{i}.png"
            (folder / name).mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
            Image.fromarray(pixels).save(folder / image)
            rows.append(Generated(image, name, i, 1.0, 0, 2, "small", train_split or mine))
    generated_lib.write(folder, rows)
    return folder


@pytest.fixture(scope="module")
def common(small_gan):
    """The three classes of which the validation split has most images: name -> how many."""
    counts = reopen(small_gan).class_counts("val")
    return {HAM10000.names[c]: int(counts[c]) for c in np.argsort(-counts, kind="stable")[:3]}


@pytest.fixture(scope="module")
def generated(small_gan, common, tmp_path_factory):
    first, second, third = common
    there = {first: 4, second: 2, third: 2}
    return fill(tmp_path_factory.mktemp("made") / "secretfolder", small_gan, there)


@pytest.fixture
def make(study_with, small_gan, generated, tmp_path):
    def made(*words: str, **chosen: object) -> tuple[str, dict, dict]:
        """The page's source, what its script is given, and the key."""
        given = {"workdir": small_gan, "generated": generated, "images": N, "seed": 3}
        study_with("make", *words, **given | {"out": tmp_path / "study.html"} | chosen)
        page = (tmp_path / "study.html").read_text()
        content = json.loads(re.search(r"^const study = (.*);$", page, re.M).group(1))
        return page, content, json.loads((tmp_path / "study.key.json").read_text())

    return made


def answer(path, content, reader, choose, diagnose=lambda code: ""):
    """The table of one reader; `choose` and `diagnose` are asked for each code."""
    text = io.StringIO()
    write = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    text.write(",".join(content["columns"]) + "\n")
    for number, (code, _) in enumerate(content["items"]):
        row = [content["id"], reader, "5 years", code, choose(code), diagnose(code), number]
        write.writerow(row)
    path.write_text(text.getvalue())
    return path


def truth(key):
    return lambda code: "generated" if key["items"][code]["generated"] else "real"


def test_a_page_holds_the_images_of_both_kinds_and_the_key_says_which(
    make, small_gan, generated, common, capsys
):
    _, content, key = make()
    items = dict(content["items"])
    assert list(items) == sorted(items) == list(key["items"])
    assert content["id"] == key["study"]
    kinds = Counter((item["generated"], item["label"]) for item in key["items"].values())
    first, second, third = common
    expected = {first: 2, second: 1, third: 1}  # as 4 to 2 to 2
    assert kinds == {(kind, name): n for kind in (True, False) for name, n in expected.items()}
    experiment = reopen(small_gan)
    ids = {record.image_id: i for i, record in enumerate(experiment.examples.records)}
    for code, item in key["items"].items():
        shown = np.asarray(Image.open(io.BytesIO(b64decode(items[code]))))
        if item["generated"]:
            expected = np.asarray(Image.open(generated / item["image"]))
        else:
            place = ids[item["image"]]
            assert experiment.assignment[place] == "val"
            expected = experiment.examples.images[np.array([place])][0]
        np.testing.assert_array_equal(shown, expected)
    assert len({item["image"] for item in key["items"].values()}) == 2 * N
    said = capsys.readouterr()
    assert "8 images, half of them real" in said.out
    assert "warning" not in said.err


def test_the_source_of_a_page_gives_nothing_away(make, small_gan, generated):
    page, content, key = make()
    assert set(content) == {"id", "columns", "size", "classes", "items"}
    assert all(re.fullmatch("i[0-9a-f]{11}", code) for code, _ in content["items"])
    source = re.sub(r'\["(i[0-9a-f]{11})", "[A-Za-z0-9+/=]+"\]', r"\1", page)
    assert len(source) < 20_000
    words = {*HAM10000.names, *HAM10000.titles, generated.name, small_gan.name, str(small_gan)}
    words |= {item["image"] for item in key["items"].values()}
    words |= {Path(item["image"]).stem for item in key["items"].values()}
    found = {word for word in words if re.search(rf"\b{re.escape(word)}\b", source)}
    assert found == {"small"} & found  # a tag of HTML, too
    for _, picture in content["items"]:
        png, chunks = b64decode(picture), []
        at = 8
        while at < len(png):
            length = int.from_bytes(png[at : at + 4], "big")
            chunks.append(png[at + 4 : at + 8])
            at += 12 + length
        assert {*chunks} == {b"IHDR", b"IDAT", b"IEND"}  # no times, no texts
    kinds = [key["items"][code]["generated"] for code, _ in content["items"]]
    assert kinds not in (sorted(kinds), sorted(kinds, reverse=True))


def test_a_page_asks_no_network(make):
    page, _, _ = make()
    assert "default-src 'none'" in page
    assert not re.search(r"https?:|//[a-z]+\.|@import|fetch\(|XMLHttp|WebSocket|sendBeacon", page)
    assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=\"(?!data:,)[^\"]+\"", page)


def test_the_page_goes_into_the_wheel():
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())
    names = setup["tool"]["setuptools"]["package-data"]["skin_jax.report"]
    assert all((ROOT / "skin_jax" / "report" / name).is_file() for name in names)
    assert {path.name for path in (ROOT / "skin_jax" / "report").glob("*.html")} == {*names}


def test_the_same_call_gives_the_same_study_and_another_seed_another(make, tmp_path):
    page, content, key = make()
    assert make()[0] == page
    _, other, _ = make(seed=4, out=tmp_path / "other.html") or (None, None, None)
    again = json.loads((tmp_path / "other.key.json").read_text())
    assert again["study"] != key["study"]
    assert not {*again["items"]} & {*key["items"]}
    assert other == content  # of the first page, which stayed


def test_answers_round_trip(make, study_with, tmp_path, capsys):
    _, content, key = make()
    right = truth(key)
    wrong = dict(content["items"]).popitem()[0]

    def nearly(code):
        other = {"real": "generated", "generated": "real"}
        return other[right(code)] if code == wrong else right(code)

    files = [
        answer(tmp_path / "a.csv", content, 'A; "the first"', right),
        answer(tmp_path / "b, c.csv", content, "B", nearly),
    ]
    key_file = tmp_path / "study.key.json"
    study_with("score", key=key_file, answers=files[0], out=tmp_path / "one")
    out = tmp_path / "two"
    (tmp_path / "joined.csv").write_text(files[1].read_text())
    both = f"{files[0]},{tmp_path / 'joined.csv'}"
    study_with("score", key=key_file, answers=both, out=out)
    one = json.loads((tmp_path / "one" / "scores.json").read_text())
    scores = json.loads((out / "scores.json").read_text())
    assert one["detection"]["overall"]["accuracy"]["value"] == 1
    assert "This reader tells generated from real images" in one["conclusion"]
    readers = scores["detection"]["readers"]
    assert list(readers) == ['A; "the first"', "B"]
    assert readers["B"]["accuracy"]["value"] == pytest.approx(7 / 8)
    assert scores["detection"]["overall"]["accuracy"]["value"] == pytest.approx(15 / 16)
    assert scores["readers"]["B"] == {"experience": "5 years", "median_seconds": 3.5}
    assert scores["diagnosis"] is None
    assert {*scores["classes"]} == {item["label"] for item in key["items"].values()}
    low, high = scores["detection"]["overall"]["d_prime"]["ci95"]
    assert 0 < low < high
    assert scores["conclusion"].startswith("Readers tell generated from real images")
    report = (out / "report.md").read_text()
    assert scores["conclusion"].split(". ")[0][:60] in report
    assert "Readers tell generated from real images" in capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert "A; &quot;the first&quot;" in page
    assert "Experience of the readers" in page
    assert "procedural lesions of the demo, no photographs" in page


def test_a_diagnosis_is_asked_for_and_scored(make, study_with, tmp_path):
    _, content, key = make("diagnosis")
    pairs = zip(HAM10000.names, HAM10000.titles, strict=True)
    assert content["classes"] == [list(pair) for pair in pairs]
    labels = {code: item["label"] for code, item in key["items"].items()}
    other = next(name for name in HAM10000.names if name not in labels.values())
    right = truth(key)
    table = answer(
        tmp_path / "a.csv",
        content,
        "A",
        lambda code: "real",
        lambda code: labels[code] if right(code) == "real" else other,
    )
    out = tmp_path / "scores"
    study_with("score", key=tmp_path / "study.key.json", answers=table, out=out)
    scores = json.loads((out / "scores.json").read_text())
    values = {name: e["value"] for name, e in scores["diagnosis"]["overall"].items()}
    assert values == {"real": 1, "generated": 0, "difference": 1}
    assert scores["detection"]["overall"]["d_prime"]["value"] == pytest.approx(0)
    assert "not shown that this reader tells" in scores["conclusion"]
    assert "Generated images are harder to diagnose" in (out / "report.md").read_text()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser here")
def test_the_page_works_in_a_browser_with_the_keyboard_alone(make, tmp_path):
    page, content, key = make("diagnosis")
    script = """<script>
    (async () => {
      const wait = () => new Promise(done => setTimeout(done, 300));
      const press = key => document.dispatchEvent(new KeyboardEvent("keydown", {key}));
      const heard = [];
      at("reader").value = 'A "quoted", name';
      at("begin").click();
      while (at("end").hidden) {
        await wait();
        press("x");
        press(state.place % 2 ? "r" : "G");
        press(String(1 + state.place % 7));
        if (state.place === 2 && !heard.length) {
          await wait(); press("ArrowLeft"); heard.push(at("count").textContent);
          await wait(); press("ArrowRight"); heard.push(at("count").textContent);
        }
      }
      document.body.textContent = JSON.stringify(
        {heard, table: table(), order: state.order, wide: document.body.scrollWidth, sides});
    })();
    const sides = [], observed = new MutationObserver(() => sides.push(at("image").style.width));
    observed.observe(at("image"), {attributes: true});
    </script>"""
    (tmp_path / "driven.html").write_text(page.replace("</body>", script + "</body>"))
    options = "headless no-sandbox disable-gpu disable-quic no-first-run disable-sync"
    options += " disable-background-networking disable-component-update dump-dom"
    command = ["chromium", *(f"--{option}" for option in options.split())]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=390,844"]
    command += ["--virtual-time-budget=60000", (tmp_path / "driven.html").as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    found = json.loads(html.unescape(re.search(r"<body>(.*?)</body>", shown, re.S).group(1)))
    assert found["heard"] == ["Picture 2 of 8", "Picture 3 of 8"]
    assert {int(side.removesuffix("px")) % content["size"] for side in found["sides"] if side} == {
        0
    }
    (tmp_path / "a.csv").write_text(found["table"])
    answers = reader_items.read_answers(
        [tmp_path / "a.csv"], reader_items.read_key(tmp_path / "study.key.json")
    )
    assert answers.readers == ['A "quoted", name']
    places = [found["order"].index(code) for code in key["items"]]
    assert answers.called[:, 0].tolist() == [place % 2 == 0 for place in places]
    assert answers.diagnoses[:, 0].tolist() == [place % 7 for place in places]
    assert (answers.seconds > 0).all()


def test_tables_that_spreadsheets_saved_are_read(make, tmp_path):
    _, content, key = make()
    path = answer(tmp_path / "a.csv", content, "A", truth(key))
    rows = list(csv.reader(io.StringIO(path.read_text())))
    text = "\r\n".join(";".join(row) for row in rows)
    path.write_bytes(b"\xef\xbb\xbf" + text.replace(";3\r", ";3,5\r").encode())
    found = reader_items.read_answers([path], reader_items.read_key(tmp_path / "study.key.json"))
    assert found.readers == ["A"]
    assert 3.5 in found.seconds


def test_every_problem_of_the_answers_is_listed(make, study_with, tmp_path):
    _, content, key = make("diagnosis")
    right = truth(key)
    good = answer(tmp_path / "good.csv", content, "A", right, lambda code: "nv")
    answer(tmp_path / "twin.csv", content, "A", right, lambda code: "nv")
    lines = answer(tmp_path / "bad.csv", content, "B", right, lambda code: "nv").read_text()
    header, *rows = lines.splitlines()
    fields = [row.split(",") for row in rows]
    fields[0][4] = '"perhaps"'
    fields[1][5] = '"wart"'
    fields[2][6] = '"soon"'
    fields[3][1] = '""'
    fields[4][3] = '"i00000000000"'
    broken = [header, *(",".join(row) for row in fields), ",".join(fields[5])]
    (tmp_path / "bad.csv").write_text("\n".join(broken))
    foreign = tmp_path / "foreign.csv"
    foreign.write_text(good.read_text().replace(content["id"], "sffffffffff0"))
    (tmp_path / "empty.csv").write_text("a,b\n1,2\n")
    names = ["good", "twin", "bad", "foreign", "empty", "gone"]
    with pytest.raises(UserError) as caught:
        study_with(
            "score",
            key=tmp_path / "study.key.json",
            answers=",".join(str(tmp_path / f"{name}.csv") for name in names),
            out=tmp_path / "out",
        )
    said = str(caught.value)
    for words in (
        "twin.csv: A answered in ",
        "row 2, column answer: 'perhaps' is neither real nor generated",
        "row 3, column diagnosis: 'wart' is not a class (akiec, bcc",
        "row 4, column seconds: 'soon' is not a time",
        "row 5: no name of the reader",
        "row 6: 'i00000000000' is no item of this study",
        f"row 10: B answered item {content['items'][5][0]} twice",
        "bad.csv: B did not answer 2 of 8 items",
        "foreign.csv: of another study (sffffffffff0); the key is of " + key["study"],
    ):
        assert words in said
    assert not (tmp_path / "out").exists()
    for name, words in (("empty", "column study: missing"), ("gone", "cannot be read (No such")):
        with pytest.raises(UserError, match=re.escape(words)):
            reader_items.read_answers(
                [tmp_path / f"{name}.csv"], reader_items.read_key(tmp_path / "study.key.json")
            )


def test_a_key_is_not_overwritten_by_that_of_another_study(make, tmp_path):
    page, _, _ = make()
    with pytest.raises(UserError, match="key of another study"):
        make(seed=9)
    assert (tmp_path / "study.html").read_text() == page


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"items": {}}', '{"items": 3, "x": 1}'])
def test_what_is_no_key_is_refused(study_with, tmp_path, content):
    (tmp_path / "k.json").write_text(content)
    with pytest.raises(UserError, match="is not the key of a study"):
        study_with("score", key=tmp_path / "k.json", answers="a.csv", out=tmp_path / "out")
    with pytest.raises(UserError, match="cannot read the key"):
        study_with("score", key=tmp_path / "gone.json", answers="a.csv", out=tmp_path / "out")


def test_a_key_with_an_image_taken_out_is_refused(make, tmp_path):
    _, _, key = make()
    key["items"].popitem()
    (tmp_path / "study.key.json").write_text(json.dumps(key))
    with pytest.raises(UserError, match="as many real as generated images of each class"):
        reader_items.read_key(tmp_path / "study.key.json")


def test_too_few_images_are_refused_with_the_number_that_works(make, small_gan, common, tmp_path):
    with pytest.raises(UserError, match="holds 8 images, 9 are needed; the largest --images"):
        make(images=9)
    name, there = list(common.items())[2]
    many = fill(tmp_path / "many", small_gan, {name: there + 5})
    with pytest.raises(UserError) as caught:
        make(generated=many, images=there + 1)
    assert f"the largest --images that works is {there}" in str(caught.value)
    assert f"{name}: {there}, {there + 1} are needed" in str(caught.value)
    assert not (tmp_path / "study.html").exists()


def test_images_of_other_sizes_and_other_splits_are_warned_of(
    make, small_gan, common, tmp_path, capsys
):
    odd = fill(tmp_path / "odd", small_gan, {next(iter(common)): 2}, 16, "0" * 64)
    _, content, key = make(generated=odd, images=2)
    said = capsys.readouterr().err
    assert "trained on other images than the training split" in said
    assert "16x16 pixels and are resized to 32x32" in said
    assert content["size"] == 32
    assert key["facts"]["same_training_split"] is False
    assert len({b64decode(picture)[16:24] for _, picture in content["items"]}) == 1


def test_a_damaged_image_is_named(make, small_gan, common, tmp_path):
    name = next(iter(common))
    folder = fill(tmp_path / "damaged", small_gan, {name: 1})
    (folder / name / f"{name}_0_0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=f"{name}_0_0.png: not an image"):
        make(generated=folder, images=1)


@pytest.mark.parametrize(
    ("words", "chosen", "said"),
    [
        ([], {}, "give one of --make and --score"),
        (["make", "score"], {}, "give one of --make and --score"),
        (["score"], {"images": 5}, "--images does not go with --score"),
        (["make"], {"answers": "a.csv"}, "--answers does not go with --make"),
        (["make"], {"workdir": "w", "out": "o.html"}, "--make needs --workdir=DIR, --generated"),
        (["make"], {"workdir": "w", "generated": "g", "out": "o"}, "a name that ends in .html"),
        (["score"], {"key": "k"}, "--score needs --key=FILE, --answers=FILE.csv and --out=DIR"),
    ],
)
def test_a_wrong_command_line_is_refused(study_with, words, chosen, said):
    with pytest.raises(UserError, match=re.escape(said)):
        study_with(*words, **chosen)


def test_help_imports_nothing_heavy(tmp_path):
    code = (
        "import sys, skin_jax.reader_study\n"
        "heavy = {'jax', 'numpy', 'PIL', 'matplotlib', 'tensorflow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    command = [sys.executable, "-m", "skin_jax.reader_study", "--help"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "--diagnosis" in result.stdout
