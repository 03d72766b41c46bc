"""Small data folders in the layouts that people have."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skin_jax.data.classes import HAM10000

COLUMNS = "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC"


def save_image(path: Path, seed: int, size: tuple[int, int] = (12, 9)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path, quality=95)


def one_hot(image_id: str, name: str) -> str:
    columns = HAM10000.columns
    return ",".join([image_id, *(f"{float(c == name.upper())}" for c in columns)])


def write_official(
    root: Path, labels: dict[str, str], part: str = "Training", grouping: bool = True
) -> Path:
    name = f"ISIC2018_Task3_{part}"
    for seed, image_id in enumerate(labels):
        save_image(root / f"{name}_Input" / f"{image_id}.jpg", seed)
    (root / f"{name}_Input" / "LICENSE.txt").write_text("terms")
    truth = root / f"{name}_GroundTruth" / f"{name}_GroundTruth.csv"
    truth.parent.mkdir()
    rows = [COLUMNS, *(one_hot(*item) for item in labels.items())]
    truth.write_text("\r\n".join(rows) + "\r\n", encoding="utf-8-sig", newline="")
    if part == "Training" and grouping:
        rows = [f"{i},L{k // 2},histopathology" for k, i in enumerate(labels)]
        text = "\n".join(["image,lesion_id,diagnosis_confirm_type", *rows])
        (root / f"{name}_LesionGroupings.csv").write_text(text)
    return root


def write_ham10000(root: Path, labels: dict[str, str], metadata: str) -> Path:
    rows = ["lesion_id,image_id,dx,dx_type,age,sex,localization"]
    for k, (image_id, name) in enumerate(labels.items()):
        save_image(root / f"HAM10000_images_part_{1 + k % 2}" / f"{image_id}.jpg", k)
        rows.append(f"HAM_{k // 2},{image_id},{name},histo,{40 + k}.0,male,back")
    (root / metadata).write_text("\n".join(rows))
    return root


def write_class_folders(root: Path, labels: dict[str, str]) -> Path:
    for seed, (image_id, name) in enumerate(labels.items()):
        save_image(root / name / f"{image_id}.png", seed)
    return root


def write_table(path: Path, *rows: str, separator: str = ",") -> Path:
    """Rows of cells that are separated by spaces; "_" is an empty cell."""
    lines = (separator.join("" if c == "_" else c for c in row.split()) for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def labels() -> dict[str, str]:
    """Fourteen images, two of each class."""
    return {f"ISIC_{k:07}": HAM10000.names[k % 7] for k in range(14)}


@pytest.fixture
def official(tmp_path: Path, labels: dict[str, str]) -> Path:
    return write_official(tmp_path / "isic", labels)


@pytest.fixture
def write() -> dict[str, Callable]:
    """The writers above, for tests that need other folders."""
    return {
        "image": save_image,
        "official": write_official,
        "ham10000": write_ham10000,
        "classes": write_class_folders,
        "table": write_table,
    }
