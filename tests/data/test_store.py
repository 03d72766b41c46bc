import functools
import http.server
import os
import shutil
import signal
import subprocess
import sys
import threading
import zipfile

import numpy as np
import pytest

from skin_jax.base import files
from skin_jax.base.errors import UserError
from skin_jax.data import images, layouts, store
from skin_jax.data.examples import digest_of

SIZE = 16


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def prepare(official, cache):
    """`builder.prepare` of the small official folder."""
    return functools.partial(
        store.prepare, official, image_size=SIZE, cache_dir=cache, progress=False
    )


def image_path(official, number: int):
    return official / "ISIC2018_Task3_Training_Input" / f"ISIC_{number:07}.jpg"


def forbid_decoding(monkeypatch) -> None:
    def decode(source, size):
        raise AssertionError(f"{source} is decoded again")

    monkeypatch.setattr(images, "decode", decode)


def test_examples_are_the_decoded_images_sorted_by_id(official, prepare, monkeypatch, capfd):
    monkeypatch.setattr(store, "_SHARD_BYTES", 5 * SIZE * SIZE * 3)  # several shards
    monkeypatch.setattr(store, "_READ_BYTES", 3 * SIZE * SIZE * 3)
    examples = prepare()
    records = layouts.read(official).records
    assert examples.records == records
    assert examples.images.dtype == np.uint8
    for record, image in zip(records, examples.images, strict=True):
        np.testing.assert_array_equal(image, images.decode(record.path, SIZE))
    assert examples.labels.dtype == np.int32
    assert examples.labels.tolist() == [k % 7 for k in range(14)]
    assert examples.digest == digest_of(records, examples.images)
    assert examples.skipped == ()
    assert capfd.readouterr() == ("", "")


def test_second_call_reads_the_cache(prepare, monkeypatch):
    first = prepare()
    forbid_decoding(monkeypatch)
    second = prepare()
    np.testing.assert_array_equal(first.images, second.images)
    assert (first.digest, first.records) == (second.digest, second.records)


def test_features_are_stored_with_the_images(official, prepare, cache):
    (official / "HAM10000_metadata.csv").write_text(
        "lesion_id,image_id,dx,dx_type,age,sex,localization\n"
        "HAM_1,ISIC_0000000,nv,follow_up,45,female,trunk\n"
    )
    prepare()
    (entry,) = [path for path in (cache / "prepared").iterdir() if path.is_dir()]
    stored = store.LesionImages(size=SIZE, data_dir=entry).as_data_source("images")[0]
    assert stored["label"] == 0
    assert stored["age"] == 45
    text = {k: v.decode() for k, v in stored.items() if isinstance(v, bytes)}
    assert text == {
        "image_id": "ISIC_0000000",
        "lesion_id": "L0",
        "sex": "female",
        "localization": "trunk",
        "confirmation": "histo",
        "official_split": "train",
    }


def test_a_changed_folder_or_size_is_prepared_anew(official, prepare, write):
    first = prepare()
    write["image"](image_path(official, 0), 99)
    second = prepare()
    assert second.digest != first.digest
    assert (second.images[1:] == first.images[1:]).all()
    assert prepare(image_size=8).images.shape == (14, 8, 8, 3)


def test_digest_covers_pixels_ids_labels_lesions_and_splits(prepare):
    examples = prepare()
    pixels = examples.images.copy()
    pixels[3, 1, 2, 0] ^= 1
    digests = {examples.digest, digest_of(examples.records, pixels)}
    first, *others = examples.records
    for change in (
        {"image_id": "x"},
        {"label": 3},
        {"lesion_id": "x"},
        {"official_split": "val"},
    ):
        changed = type(first)(**{**vars(first), **change})
        digests.add(digest_of([changed, *others], examples.images))
    assert len(digests) == 6


def test_read_only_symlinked_data_folder(official, cache, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(official)
    before = sorted(official.rglob("*"))
    folders = [official, *(path for path in before if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        examples = store.prepare(link, image_size=SIZE, cache_dir=cache, progress=False)
        again = store.prepare(str(official), image_size=SIZE, cache_dir=cache, progress=False)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert examples.digest == again.digest
    assert sorted(official.rglob("*")) == before


# Bad input


def test_unreadable_images_are_refused_together(official, prepare, cache):
    image_path(official, 3).write_bytes(b"")
    image_path(official, 5).write_bytes(image_path(official, 5).read_bytes()[:300])
    with pytest.raises(UserError) as caught:
        prepare()
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "(2 problems)" in message
    assert "Training_Input/ISIC_0000003.jpg: unreadable image: not an image" in message
    assert "Training_Input/ISIC_0000005.jpg: unreadable image: " in message
    assert "--config.data.on_bad_image=skip" in message
    assert not list(cache.rglob("*array_record*"))


def test_first_ten_of_many_problems_are_shown(official, prepare):
    for number in range(12):
        image_path(official, number).write_bytes(b"text")
    with pytest.raises(UserError, match=r"\(12 problems\)") as caught:
        prepare()
    assert str(caught.value).count(": unreadable image: ") == 10
    assert "... and 2 more" in str(caught.value)


def test_skip_leaves_out_and_remembers_unreadable_images(official, prepare, monkeypatch):
    image_path(official, 3).write_bytes(b"text")
    first = prepare(on_bad_image="skip")
    assert [r.image_id for r in first.records] == [f"ISIC_{k:07}" for k in range(14) if k != 3]
    ((file, reason),) = first.skipped
    assert file == "ISIC2018_Task3_Training_Input/ISIC_0000003.jpg"
    assert "not an image" in reason
    assert first.digest == digest_of(first.records, first.images)
    forbid_decoding(monkeypatch)
    second = prepare(on_bad_image="skip")
    assert (second.skipped, second.digest) == (first.skipped, first.digest)
    with pytest.raises(UserError, match=r"(?s)\(1 problem\).*ISIC_0000003"):
        prepare(on_bad_image="error")


def test_skip_does_not_hide_structural_problems(official, prepare, write):
    write["image"](image_path(official, 77), 0)
    image_path(official, 3).write_bytes(b"text")
    for mode in ("error", "skip"):
        with pytest.raises(UserError) as caught:
            prepare(on_bad_image=mode)
        assert "(2 problems)" in str(caught.value)
        assert "ISIC_0000077.jpg: no row" in str(caught.value)
        assert "ISIC_0000003.jpg: unreadable" in str(caught.value)


def test_nothing_readable_at_all(official, prepare):
    for number in range(14):
        image_path(official, number).write_bytes(b"")
    with pytest.raises(UserError, match=r"\(14 problems\)"):
        prepare(on_bad_image="skip")


def test_bad_options(prepare, official):
    with pytest.raises(UserError, match=r"config\.data\.on_bad_image.*'ignore'"):
        prepare(on_bad_image="ignore")
    with pytest.raises(UserError, match=r"config\.data\.image_size"):
        prepare(image_size=0)
    options = {"image_size": SIZE, "cache_dir": official, "progress": False}
    with pytest.raises(UserError, match=r"--config\.data\.dir=FOLDER.*--config\.data\.download"):
        store.prepare(None, **options)
    with pytest.raises(UserError, match="does not exist"):
        store.prepare(official / "typo", download=True, **options)


def test_cache_folder_that_cannot_be_written(prepare, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--config\.data\.cache_dir"):
        prepare(cache_dir=tmp_path / "file")


# Interruptions, damage, other processes

PREPARE = """
import os, signal, sys
from skin_jax.data import builder, images
decode, calls = images.decode, 0
def count(path, size):
    global calls
    calls += 1
    if calls == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(path, size)
images.decode = count
builder._SHARD_BYTES = 2 * 16 * 16 * 3
examples = builder.prepare(sys.argv[1], image_size=16, cache_dir=sys.argv[2], progress=False)
print(examples.digest, calls)
"""


def start(official, cache, kill_at: int) -> subprocess.Popen:
    command = [sys.executable, "-W", "error", "-c", PREPARE, official, cache, str(kill_at)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_halfway_it_starts_clean(official, prepare, cache):
    killed = start(official, cache, kill_at=12)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    left = [path for path in cache.rglob("*incomplete*") if path.is_dir()]
    assert left, "the kill came too late to mean anything"
    examples = prepare()
    assert len(examples.images) == 14
    assert not any(path.exists() for path in left)
    assert not list(cache.rglob("*incomplete*"))


def test_two_processes_prepare_once(official, prepare, cache):
    both = [start(official, cache, kill_at=-1) for _ in range(2)]
    results = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    digests, decoded = zip(*(out.split() for out, _ in results), strict=True)
    assert set(digests) == {prepare().digest}
    assert sorted(decoded) == ["0", "14"]


def test_file_systems_without_locks(prepare, monkeypatch):
    def flock(file, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    assert len(prepare().images) == 14


def test_another_process_wins_without_locks(official, prepare, monkeypatch):
    expected = prepare(image_size=8).digest
    real_load, calls = store._load, iter(range(10))

    def load_too_early(*args):
        return None if next(calls) < 2 else real_load(*args)

    monkeypatch.setattr(store, "_load", load_too_early)
    monkeypatch.setattr(files.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(95, "")))
    monkeypatch.setattr(store.LesionImages, "download_and_prepare", _lose_the_race)
    assert prepare(image_size=8).digest == expected


def _lose_the_race(self, **_):
    raise OSError(39, "Directory not empty")


@pytest.mark.parametrize("damage", ["truncate", "flip", "metadata", "delete"])
def test_a_damaged_cache_is_prepared_again(prepare, cache, damage, monkeypatch):
    expected = prepare()
    warnings = []
    monkeypatch.setattr(store, "warn", warnings.append)
    (shard,) = cache.rglob("*array_record*")
    if damage == "truncate":
        os.truncate(shard, shard.stat().st_size // 2)
    elif damage == "flip":
        content = bytearray(shard.read_bytes())
        content[2000] ^= 0x01
        shard.write_bytes(content)
    elif damage == "metadata":
        (shard.parent / "metadata.json").write_text("{")
    else:
        shard.unlink()
    examples = prepare()
    (warning,) = warnings
    assert f"{shard.parent} is damaged" in warning
    assert examples.digest == expected.digest
    np.testing.assert_array_equal(examples.images, expected.images)


@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
def test_a_folder_that_vanishes_while_it_is_read(
    official, prepare, cache, monkeypatch, on_bad_image
):
    decode = images.decode

    def vanishing(path, size):
        if path == image_path(official, 3):
            shutil.rmtree(official)
        return decode(path, size)

    monkeypatch.setattr(images, "decode", vanishing)
    with pytest.raises(UserError, match=r"ISIC_000000\d.jpg was there a moment ago and is gone"):
        prepare(on_bad_image=on_bad_image)
    assert not list(cache.rglob("*array_record*"))


def test_full_disk(prepare, monkeypatch):
    monkeypatch.setattr(store.LesionImages, "download_and_prepare", _fill_the_disk)
    with pytest.raises(UserError, match=r"No space left.*--config\.data\.cache_dir"):
        prepare()


def _fill_the_disk(self, **_):
    raise RuntimeError("write() failed: No space left on device")


def test_no_tensorflow_is_imported(official, cache):
    code = PREPARE + "\nassert 'tensorflow' not in sys.modules"
    command = [sys.executable, "-c", code, official, cache, "-1"]
    subprocess.run(command, check=True, capture_output=True)


# The download


@pytest.fixture
def server(tmp_path):
    """Serves a folder on this machine; yields the folder and its address."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()
        thread.join()


def test_download_unpacks_and_prepares_the_archives(official, cache, write, server, monkeypatch):
    folder, address = server
    write["official"](official, {"ISIC_V": "mel"}, "Validation")
    write["official"](official, {"ISIC_T": "df"}, "Test")
    for name in store.ARCHIVES:
        if name.endswith(".csv"):
            (folder / name).write_bytes((official / name).read_bytes())
            continue
        with zipfile.ZipFile(folder / name, "w") as archive:
            for path in (official / name.removesuffix(".zip")).iterdir():
                archive.write(path, path.relative_to(official))
    monkeypatch.setattr(store, "ARCHIVES_URL", address)
    options = {"image_size": SIZE, "cache_dir": cache, "download": True, "progress": False}
    examples = store.prepare(None, **options)
    expected = store.prepare(official, image_size=SIZE, cache_dir=cache, progress=False)
    assert examples.digest == expected.digest
    assert len(examples.images) == 16
    for path in folder.iterdir():
        path.unlink()
    forbid_decoding(monkeypatch)
    assert store.prepare(None, **options).digest == expected.digest


@pytest.mark.parametrize("reachable", [False, True])
def test_offline_says_what_to_download_and_where_to_put_it(cache, server, monkeypatch, reachable):
    _, address = server  # serves an empty folder
    address = address if reachable else "http://127.0.0.1:9/"
    monkeypatch.setattr(store, "ARCHIVES_URL", address)
    with pytest.raises(UserError) as caught:
        store.prepare(None, image_size=SIZE, cache_dir=cache, download=True, progress=False)
    message = str(caught.value)
    assert f"{address}ISIC2018_Task3_Training_Input.zip" in message
    assert f"{address}ISIC2018_Task3_Training_LesionGroupings.csv" in message
    assert "--config.data.dir=FOLDER" in message
