import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")


@pytest.fixture
def data_dir(tmp_path) -> Path:
    """HAM10000 as Kaggle ships it: three lesions of two images in each class."""
    root = tmp_path / "data"
    (root / "HAM10000_images_part_1").mkdir(parents=True)
    rows = ["lesion_id,image_id,dx,dx_type,age,sex,localization"]
    for k in range(42):
        image = Image.fromarray(np.full((8, 8, 3), k, np.uint8))
        image.save(root / "HAM10000_images_part_1" / f"ISIC_{k}.jpg")
        rows.append(f"HAM_{k // 2},ISIC_{k},{CLASSES[k // 6]},histo,50,male,back")
    (root / "HAM10000_metadata.csv").write_text("\n".join(rows))
    return root


def prepare(tmp_path, *arguments: object) -> subprocess.CompletedProcess:
    flags = [f"--cache_dir={tmp_path / 'cache'}", "--image_size=8", *map(str, arguments)]
    command = [sys.executable, "-W", "error", "-m", "skin_jax.prepare", *flags]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)


def test_summary(tmp_path, data_dir):
    result = prepare(tmp_path, "--data_dir", data_dir)
    assert result.returncode == 0, result.stderr
    assert "42 images of 8x8 pixels" in result.stdout
    assert "  mel        6  14.3%  ####" in result.stdout
    assert "21 lesions, 21 of them with several images (at most 2)" in result.stdout
    train, val, test = result.stdout.splitlines()[-3:]
    assert train.split() == ["train", *["2"] * 7, "14"]
    assert val.split() == ["val", *["2"] * 7, "14"]
    assert test.split() == ["test", *["2"] * 7, "14"]
    assert "42/42" in result.stderr  # the progress bar
    assert "Load dataset info" not in result.stderr
    assert not (tmp_path / "skipped.csv").exists()


def test_shared_lesions_of_the_paper_split_are_said(tmp_path, data_dir):
    result = prepare(tmp_path, "--data_dir", data_dir, "--split=paper")
    assert "split 'paper'" in result.stdout
    assert "test images show a lesion that is also in train" in result.stdout


def test_a_list_that_could_not_be_written_is_refused_before_the_work(tmp_path, data_dir):
    (tmp_path / "file").touch()
    result = prepare(tmp_path, "--data_dir", data_dir, "--on_bad_image=skip", "--out=file")
    assert result.returncode == 2
    assert result.stderr.startswith("error: file/skipped.csv: cannot be written (Not a directory)")
    assert not (tmp_path / "cache" / "prepared").exists()


def test_skipped_images_are_listed(tmp_path, data_dir):
    (data_dir / "HAM10000_images_part_1" / "ISIC_7.jpg").write_bytes(b"")
    result = prepare(tmp_path, "--data_dir", data_dir)
    assert result.returncode == 2
    assert "ISIC_7.jpg: unreadable image" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""

    result = prepare(tmp_path, "--data_dir", data_dir, "--on_bad_image=skip", "--out=lists")
    assert result.returncode == 0, result.stderr
    assert "1 unreadable images were left out; see lists/skipped.csv" in result.stdout
    with (tmp_path / "lists" / "skipped.csv").open() as file:
        header, row = csv.reader(file)
    assert header == ["file", "reason"]
    assert row[0] == "HAM10000_images_part_1/ISIC_7.jpg"
    assert "not an image" in row[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ["--data_dir=FOLDER", "--download"]),
        (("--data_dir=nowhere",), ["nowhere does not exist"]),
        (("nowhere",), ["did you mean --data_dir=nowhere"]),
        (("--data_dir=data", "--split_fractions=0.9,0.1"), ["--split_fractions"]),
        (("--data_dir=data", "--fold=9"), ["--fold=9", "[0, 4]"]),
        (("--data_dir=data", "--image_size=0"), ["--image_size=0", "positive"]),
        (("--data_dir=data", "--label_column=dx"), ["data.label_column", "needs a table"]),
        (("--data_dir=data", "--rename=mel"), ["--rename=mel", "OLD=NEW"]),
    ],
)
def test_bad_input_is_one_message_and_status_2(tmp_path, data_dir, arguments, words):
    result = prepare(tmp_path, *arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert all(word in result.stderr for word in words), result.stderr


def test_class_folders_of_any_names(tmp_path):
    for k in range(12):
        path = tmp_path / "data" / ("benign nevus", "malignant")[k % 2] / f"{k // 2}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 20 * k, np.uint8)).save(path)
    result = prepare(tmp_path, "--data_dir=data", "--rename=benign nevus=nevus")
    assert result.returncode == 0, result.stderr
    assert "every folder is a class: nevus, malignant" in result.stderr
    assert "  malignant      6  50.0%  ####" in result.stdout
    assert "every image, with its copies, counts for itself" in result.stdout
    assert "\n          malignant      nevus     all\n" in result.stdout
    assert result.stdout.splitlines()[-1].split() == ["test", "1", "1", "2"]


def test_a_table_with_patients(tmp_path, data_dir):
    images = sorted((data_dir / "HAM10000_images_part_1").iterdir())
    rows = [f"{path.name},P{k // 6},{'abc'[k % 3]}" for k, path in enumerate(images)]
    (data_dir / "t.tsv").write_text("\n".join(["file,patient,kind", *rows]).replace(",", "\t"))
    table = ("--data_dir", data_dir, "--table=t.tsv", "--label_column=kind")
    result = prepare(tmp_path, *table, "--classes=c,a")
    assert result.returncode == 0, result.stderr
    assert "columns of t.tsv: image: file; class: kind; patient: patient" in result.stderr
    assert "images of other classes are left out: 14 of b" in result.stderr
    assert "28 images of 8x8 pixels\n  c         14  50.0%" in result.stdout
    assert "7 patients, 7 of them with several images (at most 4)" in result.stdout
    result = prepare(tmp_path, *table[:3])
    assert result.returncode == 2
    assert (
        "no column has a usual name for the label; name it with data.label_column" in result.stderr
    )


def test_help_imports_nothing_heavy(tmp_path):
    code = (
        "import sys, skin_jax.prepare\n"
        "heavy = {'jax', 'numpy', 'PIL', 'tensorflow_datasets', 'tensorflow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    result = prepare(tmp_path, "--help")
    assert result.returncode == 0
    assert "--data_dir" in result.stdout
