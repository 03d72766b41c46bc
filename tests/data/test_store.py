import functools
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from skin_jax.base import files
from skin_jax.base.errors import UserError
from skin_jax.data import contents, images, layouts, prepared, store
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


def everything(examples) -> np.ndarray:
    return examples.images[np.arange(len(examples.records))]


def entries(cache) -> list:
    return [path for path in (cache / "prepared").iterdir() if path.is_dir()]


def forbid_decoding(monkeypatch) -> None:
    def decode(source, size):
        raise AssertionError(f"{source} is decoded again")

    monkeypatch.setattr(images, "decode", decode)


def test_examples_are_the_decoded_images_sorted_by_id(official, prepare, monkeypatch, capfd):
    monkeypatch.setattr(prepared, "_SHARD_BYTES", 5 * SIZE * SIZE * 3)  # several shards
    monkeypatch.setattr(prepared, "_READ_BYTES", 3 * SIZE * SIZE * 3)
    examples = prepare()
    records = layouts.read(official).records
    assert examples.records == records
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
    np.testing.assert_array_equal(everything(first), everything(second))
    assert (first.digest, first.records) == (second.digest, second.records)


def test_features_are_stored_with_the_images(official, prepare, cache):
    (official / "HAM10000_metadata.csv").write_text(
        "lesion_id,image_id,dx,dx_type,age,sex,localization\n"
        "HAM_1,ISIC_0000000,nv,follow_up,45,female,trunk\n"
    )
    prepare()
    (entry,) = entries(cache)
    stored = prepared.LesionImages(size=SIZE, data_dir=entry).as_data_source("images")[0]
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


def test_images_are_read_by_indices_of_any_shape(prepare, monkeypatch):
    monkeypatch.setattr(prepared, "_SHARD_BYTES", 5 * SIZE * SIZE * 3)
    monkeypatch.setattr(prepared, "_READ_BYTES", 2 * SIZE * SIZE * 3)
    images = prepare().images
    pixels = np.stack(list(images))
    assert images.shape == pixels.shape == (14, SIZE, SIZE, 3)
    assert images.nbytes == pixels.nbytes
    for shape in [(40,), (3, 5), (2, 0)]:
        indices = np.random.default_rng(0).integers(0, 14, shape, np.int32)
        found = images[indices]
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, pixels[indices])
    np.testing.assert_array_equal(images[np.int64(13)], pixels[13])


@pytest.mark.parametrize("index", [14, -1])
def test_indices_out_of_range_are_refused(prepare, index):
    with pytest.raises(IndexError, match="0 to 13"):
        prepare().images[np.array([3, index])]


def test_masks_and_slices_are_refused(prepare):
    for index in (np.ones(14, bool), slice(0, 3)):
        with pytest.raises(TypeError, match="by integers"):
            prepare().images[index]


def test_skipping_more_than_a_file_of_the_store_holds(official, prepare, monkeypatch):
    monkeypatch.setattr(prepared, "_SHARD_BYTES", 3 * SIZE * SIZE * 3)
    for number in range(1, 13):
        image_path(official, number).write_bytes(b"text")
    examples = prepare(on_bad_image="skip")
    assert [record.image_id for record in examples.records] == ["ISIC_0000000", "ISIC_0000013"]
    assert examples.digest == digest_of(examples.records, examples.images)


def test_a_large_data_set_is_in_few_files(prepare, cache, monkeypatch):
    monkeypatch.setattr(prepared, "_SHARD_BYTES", SIZE * SIZE * 3)
    monkeypatch.setattr(prepared, "_MOST_SHARDS", 4)
    prepare()
    assert len(list(cache.rglob("*array_record*"))) == 4


# The cache belongs to contents


def test_a_changed_folder_or_size_is_prepared_anew(official, prepare, write):
    first = prepare()
    write["image"](image_path(official, 0), 99)
    second = prepare()
    assert second.digest != first.digest
    assert (everything(second)[1:] == everything(first)[1:]).all()
    assert prepare(image_size=8).images.shape == (14, 8, 8, 3)


def test_changed_tables_are_prepared_anew(official, prepare):
    first = prepare()
    groupings = official / "ISIC2018_Task3_Training_LesionGroupings.csv"
    groupings.write_text(groupings.read_text().replace("L0", "L9"))
    second = prepare()
    assert second.digest != first.digest
    assert second.records[0].lesion_id == "L9"


@pytest.mark.parametrize("remembers", [False, True])
def test_equal_names_sizes_and_times_are_not_equal_contents(
    tmp_path, cache, labels, write, monkeypatch, remembers
):
    if remembers:
        monkeypatch.setattr(contents, "_SETTLED_AFTER", 0)
    found = []
    for folder, seed in (("a", 0), ("b", 100), ("a", 200)):
        for number, (image_id, name) in enumerate(labels.items()):
            path = tmp_path / folder / name / f"{image_id}.bmp"  # of one size, whatever it shows
            write["image"](path, seed + number)
            os.utime(path, (1e9, 1e9))
        examples = store.prepare(
            tmp_path / folder, image_size=SIZE, cache_dir=cache, progress=False
        )
        assert examples.digest == digest_of(examples.records, examples.images)
        found.append(examples.digest)
    assert len(set(found)) == 3


def test_moved_and_copied_folders_share_the_prepared_images(
    official, prepare, cache, tmp_path, monkeypatch
):
    image_path(official, 3).write_bytes(b"text")
    first = prepare(on_bad_image="skip")
    forbid_decoding(monkeypatch)
    copied = shutil.copytree(official, tmp_path / "copied", copy_function=shutil.copyfile)
    again = store.prepare(
        copied, image_size=SIZE, cache_dir=cache, on_bad_image="skip", progress=False
    )
    assert (again.digest, again.skipped) == (first.digest, first.skipped)
    assert len(entries(cache)) == 1


def test_rows_of_an_array_are_told_by_their_pixels(tmp_path, cache):
    file, rng = tmp_path / "dermamnist.npz", np.random.default_rng(0)
    arrays = {f"{split}_labels": np.arange(4)[:, None] for split in ("train", "val", "test")}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = rng.integers(0, 256, (4, SIZE, SIZE, 3), np.uint8)
    found = []
    for save in (np.savez, np.savez_compressed, np.savez):
        save(file, **arrays)
        examples = store.prepare(file, image_size=SIZE, cache_dir=cache, progress=False)
        assert examples.digest == digest_of(examples.records, examples.images)
        found.append(examples.digest)
        if save is np.savez_compressed:
            arrays["val_images"][2, 0, 0, 0] ^= 1
    assert found[0] == found[1] != found[2]
    assert len(entries(cache)) == 2


def test_files_that_did_not_change_are_not_read_again(official, prepare, write, monkeypatch):
    monkeypatch.setattr(contents, "_SETTLED_AFTER", 0)
    prepare()
    reads = []
    read = images.read
    monkeypatch.setattr(images, "read", lambda path: reads.append(path) or read(path))
    prepare(image_size=8)
    assert len(reads) == 14  # to be decoded, and not before
    write["image"](image_path(official, 5), 99)
    reads.clear()
    prepare(image_size=8)
    assert reads[0] == image_path(official, 5)
    assert len(reads) == 15


@pytest.mark.parametrize("damage", [b"{", b"[]", b""])
def test_a_damaged_list_of_hashes_is_made_anew(prepare, cache, monkeypatch, damage):
    monkeypatch.setattr(contents, "_SETTLED_AFTER", 0)
    prepare()
    (known,) = (cache / "contents").iterdir()
    content = json.loads(known.read_bytes())
    known.write_bytes(damage)
    prepare()
    assert json.loads(known.read_bytes()) == content


def test_digest_covers_pixels_ids_labels_lesions_and_splits(prepare):
    examples = prepare()
    pixels = everything(examples)
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


def test_a_folder_that_is_not_there(official):
    options = {"image_size": SIZE, "cache_dir": official, "progress": False}
    with pytest.raises(UserError, match=r"--config\.data\.dir=FOLDER.*--config\.data\.download"):
        store.prepare(None, **options)
    with pytest.raises(UserError, match="does not exist"):
        store.prepare(official / "typo", download=True, **options)


def test_cache_folder_that_cannot_be_written(prepare, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--config\.data\.cache_dir"):
        prepare(cache_dir=tmp_path / "file")


@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
def test_a_passing_trouble_is_not_remembered(official, prepare, cache, monkeypatch, on_bad_image):
    read = images.read

    def denied(path):
        if path == image_path(official, 3):
            raise images.PassingTrouble("Permission denied")
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(images, "read", denied)
        with pytest.raises(UserError, match=r"(?s)\(1 problem\).*ISIC_0000003.jpg: Permission den"):
            prepare(on_bad_image=on_bad_image)
    examples = prepare(on_bad_image=on_bad_image)
    assert len(examples.records) == 14
    assert examples.skipped == ()


@pytest.mark.parametrize("trouble", [OSError(5, "Input/output error"), MemoryError()])
def test_a_trouble_while_decoding_is_not_remembered(official, prepare, cache, monkeypatch, trouble):
    calls = iter(range(100))
    read = images.Path.read_bytes

    def failing(path):
        if path == image_path(official, 3) and next(calls) == 1:  # the second time, to decode it
            raise trouble
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(images.Path, "read_bytes", failing)
        with pytest.raises(UserError, match=r"0003.jpg: (Input/output error|not enough memory)"):
            prepare(on_bad_image="skip")
    assert not list(cache.rglob("*array_record*"))
    assert len(prepare(on_bad_image="skip").records) == 14


def test_a_file_that_changes_while_it_is_read_is_not_stored(official, prepare, cache, monkeypatch):
    read, calls = images.read, iter(range(100))

    def changing(path):
        content = read(path)
        return content + b"x" if path == image_path(official, 3) and next(calls) else content

    monkeypatch.setattr(images, "read", changing)
    with pytest.raises(UserError, match=r"ISIC_0000003.jpg: it changes while it is read"):
        prepare(on_bad_image="skip")
    assert not list(cache.rglob("*array_record*"))


def test_a_wrong_hash_in_the_cache_is_no_dead_end(prepare, cache, monkeypatch):
    monkeypatch.setattr(contents, "_SETTLED_AFTER", 0)
    prepare()
    (known,) = (cache / "contents").iterdir()
    hashes = json.loads(known.read_bytes())
    known.write_text(json.dumps(hashes | {next(iter(hashes)): "0" * 64}))
    with pytest.raises(UserError, match="it changes while it is read"):
        prepare()
    assert len(prepare().records) == 14


# Interruptions, damage, other processes

PREPARE = """
import os, signal, sys
from skin_jax.data import images, prepared, store
decode, calls = images.decode, 0
def count(path, size):
    global calls
    calls += 1
    if calls == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(path, size)
images.decode = count
prepared._SHARD_BYTES = 2 * 16 * 16 * 3
examples = store.prepare(sys.argv[1], image_size=16, cache_dir=sys.argv[2], progress=False)
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
    monkeypatch.setattr(prepared.LesionImages, "download_and_prepare", _lose_the_race)
    assert prepare(image_size=8).digest == expected


def _lose_the_race(self, **_):
    raise OSError(39, "Directory not empty")


@pytest.mark.parametrize("damage", ["truncate", "empty", "metadata", "delete"])
def test_a_damaged_cache_is_prepared_again(prepare, cache, damage, monkeypatch):
    expected = prepare()
    pixels = everything(expected)
    warnings = []
    monkeypatch.setattr(store, "warn", warnings.append)
    (shard,) = cache.rglob("*array_record*")
    if damage == "truncate":
        os.truncate(shard, shard.stat().st_size // 2)
    elif damage == "empty":
        os.truncate(shard, 0)
    elif damage == "metadata":
        (shard.parent / "metadata.json").write_text("{")
    else:
        shard.unlink()
    examples = prepare()
    (warning,) = warnings
    assert f"the prepared images in {shard.parent} are damaged" in warning
    assert examples.digest == expected.digest
    np.testing.assert_array_equal(everything(examples), pixels)


def test_a_cache_that_cannot_be_read_is_kept(prepare, cache, monkeypatch):
    prepare()
    (shard,) = cache.rglob("*array_record*")

    def denied(path, *_):
        raise PermissionError(13, "Permission denied", path)

    with monkeypatch.context() as patch:
        patch.setattr(prepared, "_reader", denied)
        with pytest.raises(UserError, match="Permission denied"):
            prepare()
    assert shard.exists()


@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_damage_that_is_found_late_ends_in_one_sentence(prepare, cache, damage):
    examples = prepare()
    (shard,) = cache.rglob("*array_record*")
    content = bytearray(shard.read_bytes())
    content[2000] ^= 0x01
    shard.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    with pytest.raises(UserError, match=f"prepared images in {shard.parent} .*delete that folder"):
        everything(examples)


def test_an_image_of_another_id_is_refused(official, prepare, cache):
    prepare()
    (foreign,) = cache.rglob("*array_record*")
    image_path(official, 13).rename(image_path(official, 20))
    for table in official.rglob("*.csv"):
        table.write_text(table.read_text().replace("ISIC_0000013", "ISIC_0000020"))
    prepare()
    (own,) = set(cache.rglob("*array_record*")) - {foreign}
    shutil.copyfile(foreign, own)
    images = prepare().images
    images[np.arange(13)]
    with pytest.raises(UserError, match="image 'ISIC_0000013' in place of 'ISIC_0000020'"):
        images[np.array([13])]


@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
def test_a_folder_that_vanishes_while_it_is_read(
    official, prepare, cache, monkeypatch, on_bad_image
):
    decode, calls = images.decode, iter(range(14))

    def vanishing(content, size):
        if next(calls) == 3:
            shutil.rmtree(official)
        return decode(content, size)

    monkeypatch.setattr(images, "decode", vanishing)
    monkeypatch.setattr(images, "THREADS", 1)
    with pytest.raises(UserError, match=r"(?s)at the moment.*ISIC_000000\d.jpg: No such file"):
        prepare(on_bad_image=on_bad_image)
    assert not list(cache.rglob("*array_record*"))


def test_full_disk(prepare, monkeypatch):
    monkeypatch.setattr(prepared.LesionImages, "download_and_prepare", _fill_the_disk)
    with pytest.raises(UserError, match=r"No space left.*--config\.data\.cache_dir"):
        prepare()


def _fill_the_disk(self, **_):
    raise RuntimeError("write() failed: No space left on device")


def test_no_tensorflow_is_imported(official, cache):
    code = PREPARE + "\nassert 'tensorflow' not in sys.modules"
    command = [sys.executable, "-c", code, official, cache, "-1"]
    subprocess.run(command, check=True, capture_output=True)
