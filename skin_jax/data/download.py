"""The archives of the ISIC 2018 challenge, task 3: fetched and unpacked under their own names."""

import shutil
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import tensorflow_datasets as tfds

from skin_jax.base.errors import UserError

ARCHIVES_URL = "https://isic-challenge-data.s3.amazonaws.com/2018/"
ARCHIVES = (
    "ISIC2018_Task3_Training_LesionGroupings.csv",
    "ISIC2018_Task3_Training_GroundTruth.zip",
    "ISIC2018_Task3_Training_Input.zip",
    "ISIC2018_Task3_Validation_Input.zip",
    "ISIC2018_Task3_Validation_GroundTruth.zip",
    "ISIC2018_Task3_Test_Input.zip",
    "ISIC2018_Task3_Test_GroundTruth.zip",
)


def fetch(folder: Path, *, progress: bool = True) -> Path:
    """Downloads and unpacks what is missing of the archives (about 3 GB) into a folder.

    Returns the data folder, in the layout "ISIC 2018 Task 3"; a UserError where it fails names the
    files, to be fetched by hand.
    """
    root = folder / "ISIC2018_Task3"
    missing = [name for name in ARCHIVES if not (root / name.removesuffix(".zip")).exists()]
    if not missing:
        return root
    tfds.display_progress_bar(progress)
    try:
        _check_online(ARCHIVES_URL + missing[0])
        root.mkdir(parents=True, exist_ok=True)
        manager = tfds.download.DownloadManager(download_dir=folder)
        # One after the other: threads that still retry would hold up the exit after a failure.
        for name in missing:
            _unpack(Path(manager.download(ARCHIVES_URL + name)), root / name.removesuffix(".zip"))
    # Everything from a refused connection to a broken archive ends in the same advice.
    except Exception as error:
        urls = "\n".join(f"  {ARCHIVES_URL}{name}" for name in ARCHIVES)
        raise UserError(
            f"the download failed ({' '.join(str(error).split())[:200]}). Download these files "
            f"yourself:\n{urls}\nunpack the archives into one folder, put the CSV file next to "
            "them, and pass it with --config.data.dir=FOLDER (skin_jax.prepare: "
            "--data_dir=FOLDER)"
        ) from error
    return root


def _unpack(file: Path, target: Path) -> None:
    """Puts a table, or an archive's folder, in its place; that of TFDS needs TensorFlow."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpacking") as temporary:
        whole = Path(temporary) / "whole"
        if target.suffix:
            shutil.copyfile(file, whole)
        else:
            shutil.unpack_archive(file, whole, "zip")
        inner = whole / target.name
        (inner if inner.is_dir() else whole).replace(target)


def _check_online(url: str) -> None:
    """Raises an OSError at once where the download manager would retry for minutes."""
    request = urllib.request.Request(url, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=30).close()
    except urllib.error.HTTPError as refusal:  # an answer all the same
        refusal.close()
