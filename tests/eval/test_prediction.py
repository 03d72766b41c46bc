import csv
import dataclasses
import io
import os
import shutil
import threading
import weakref
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from skin_jax import config as config_lib
from skin_jax import tasks
from skin_jax.base import devices, files
from skin_jax.base.errors import PARTIAL, UserError
from skin_jax.data import images
from skin_jax.data.classes import HAM10000
from skin_jax.eval import parts, prediction, tables
from skin_jax.report import heatmap
from skin_jax.tasks.declared import sgan
from skin_jax.training import checkpoints as checkpoint_lib
from skin_jax.training import run as run_lib

pytestmark = pytest.mark.xdist_group("prediction")  # one worker makes the fixtures, once


def run(folder: Path, **changes) -> Path:
    """The work folder of a run whose weights are as initialised, but three times as large."""
    config = sgan.defaults()
    config.update_from_flattened_dict(
        {"data.image_size": 32, "model.width": 4, "data.pipeline": "device"} | changes
    )
    task = tasks.build(config, HAM10000.names, np.ones(7, int), 1, 1.0)
    state = jax.jit(task.init)(jax.random.key(config.seed))
    larger = jax.tree.map(lambda x: 3 * x, (state.discriminator.params, state.ema))
    discriminator = state.discriminator.replace(params=larger[0])
    config_lib.write(config, folder)
    checkpoints = checkpoint_lib.Checkpoints(folder / "checkpoints")
    checkpoints.save(1, state.replace(discriminator=discriminator, ema=larger[1]), 0.5)
    checkpoints.close()
    rows = [f"{name},{name},{name},train" for name in HAM10000.names]
    (folder / "splits.csv").write_text("\n".join(["image,lesion_id,label,split", *rows]))
    return folder


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def other_workdir(tmp_path_factory):
    changes = {"precision": "bf16", "ema_decay": 0.5, "seed": 1, "data.image_size": 64}
    return run(tmp_path_factory.mktemp("other"), **changes)


def of_run(workdir: Path):
    """The task, its best state and its image size."""
    run = run_lib.trained(workdir)
    state, _ = run.best_state(devices.make_mesh(None))
    return run.task, state, run.config.data.image_size


def expected(workdir: Path, files) -> np.ndarray:
    task, state, size = of_run(workdir)
    return np.asarray(task.predict(state, np.stack([images.decode(Path(f), size) for f in files])))


def predict(workdirs, inputs, out: Path, **options) -> tuple[int, dict[str, np.ndarray]]:
    """The exit status, and the rows of the CSV by id."""
    inputs = [str(path) for path in inputs]
    status = prediction.predict_files(workdirs, inputs, out, progress=False, **options)
    scores = tables.read_predictions(out, HAM10000)
    return status, dict(zip(scores.image_ids, scores.probabilities, strict=True))


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def smooth(height: int, width: int) -> Image.Image:
    """Different in each quarter and each channel; survives JPEG."""
    return Image.fromarray(noise(2, 2)).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Eleven images of several sizes."""
    root = tmp_path / "images"
    root.mkdir()
    for i in range(11):
        Image.fromarray(noise(20 + i, 40, seed=i)).save(root / f"image_{i:02}.png")
    return root


@pytest.mark.parametrize("batch_size", [1, 7])
def test_predictions_are_the_task_s_own_for_any_batch_size(workdir, folder, tmp_path, batch_size):
    status, rows = predict([workdir], [folder], tmp_path / "p.csv", batch_size=batch_size)
    files = sorted(folder.iterdir())
    assert status == 0
    assert list(rows) == [file.stem for file in files]
    np.testing.assert_allclose(list(rows.values()), expected(workdir, files), atol=1e-6)
    assert not (tmp_path / "p.skipped.csv").exists()


def test_several_runs_are_averaged_each_at_its_own_size(workdir, other_workdir, folder, tmp_path):
    files = sorted(folder.iterdir())
    _, rows = predict([workdir, other_workdir], [folder], tmp_path / "p.csv", batch_size=8)
    mean = (expected(workdir, files) + expected(other_workdir, files)) / 2
    np.testing.assert_allclose(list(rows.values()), mean, atol=2e-3)  # one of them is bf16


def test_augmented_predictions_do_not_depend_on_the_orientation(workdir, tmp_path):
    pixels = noise(32, 32)
    views = {
        f"{mirror}{quarters}": np.rot90(pixels[:, ::mirror], quarters)
        for mirror in (1, -1)
        for quarters in range(4)
    }
    for name, view in views.items():
        Image.fromarray(view).save(tmp_path / f"{name}.png")
    task, state, _ = of_run(workdir)
    single = np.asarray(task.predict(state, np.stack(list(views.values()))))
    assert np.ptp(single, axis=0).max() > 1e-5
    _, rows = predict([workdir], [tmp_path], tmp_path / "p.csv", tta=True)
    for row in rows.values():
        np.testing.assert_allclose(row, single.mean(axis=0), atol=1e-6)


def test_the_middle_is_seen_at_each_scale_and_averaged(workdir, folder, tmp_path):
    whole, middle, both = (
        np.array(list(predict([workdir], [folder], tmp_path / "p.csv", scales=scales)[1].values()))
        for scales in ((1.0,), (0.5,), (1.0, 0.5))
    )
    assert np.abs(whole - middle).max() > 1e-5
    np.testing.assert_allclose(both, (whole + middle) / 2, atol=1e-6)


def test_an_image_that_exif_turns_is_predicted_as_the_upright_one(workdir, tmp_path):
    upright = smooth(48, 64)
    exif = Image.Exif()
    exif[0x0112] = 6  # the viewer turns it clockwise
    upright.save(tmp_path / "upright.png")
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "turned.png", exif=exif)
    turned.save(tmp_path / "untold.png")
    _, rows = predict([workdir], [tmp_path], tmp_path / "p.csv")
    np.testing.assert_allclose(rows["turned"], rows["upright"], atol=1e-7)
    assert np.abs(rows["untold"] - rows["upright"]).max() > 1e-6


def huge_png() -> bytes:
    """A PNG that says it has 100,000 by 100,000 pixels."""

    def chunk(content: bytes) -> bytes:
        size, checksum = len(content) - 4, zlib.crc32(content)
        return size.to_bytes(4, "big") + content + checksum.to_bytes(4, "big")

    header = b"IHDR" + (100_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(header) + chunk(b"IDAT" + zlib.compress(b"\0"))


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def malformed(root: Path) -> tuple[set[str], set[str]]:
    """Fills a folder; returns the ids of its readable images and the names of the others."""
    picture = smooth(60, 80)
    jpeg, png = encoded(picture, "JPEG"), encoded(picture, "PNG")
    root.mkdir()
    bad = {
        "zero.jpg": b"",
        "text.jpg": b"<html>404 not found</html>",
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "forbidden.jpg": jpeg,
        "huge.png": huge_png(),
        "phone.heic": b"\x00\x00\x00\x18ftypheic",
    }
    for name, content in bad.items():
        (root / name).write_bytes(content)
    (root / "itself.jpg").symlink_to(root / "itself.jpg")
    (root / "dangling.jpg").symlink_to(root / "nowhere.jpg")
    os.mkfifo(root / "pipe.jpg")

    (root / "png_named.jpg").write_bytes(png)
    (root / "naïve mole, left.JPG").write_bytes(jpeg)
    (root / "twin.jpg").write_bytes(jpeg)
    (root / "twin.png").write_bytes(png)
    (root / "x.jpg").mkdir()
    (root / "x.jpg" / "inner.png").write_bytes(png)
    (root / "again").symlink_to(root)
    (root / "x.jpg" / "up").symlink_to(root.parent)
    (root / "x.jpg" / "beside").symlink_to(root / "y")
    (root / "y").mkdir()
    (root / "y" / "back").symlink_to(root / "x.jpg")
    picture.convert("CMYK").save(root / "cmyk.jpg")
    picture.convert("RGBA").save(root / "rgba.png")
    picture.convert("L").save(root / "grey.jpg")
    sixteen = np.asarray(picture.convert("L")).astype(np.uint16) * 257
    Image.fromarray(sixteen).save(root / "sixteen.png")
    picture.resize((1, 1)).save(root / "one.png")
    picture.resize((37, 901)).save(root / "strip.png")
    Image.new("1", (9000, 8000)).save(root / "large.png")
    frames = [picture, picture.rotate(90)]
    frames[0].save(root / "animated.gif", save_all=True, append_images=frames[1:])
    exif = Image.Exif()
    exif[0x0112] = 8
    picture.save(root / "turned.jpg", exif=exif)

    for name in ("notes.txt", "table.csv", ".hidden.jpg", "no_suffix"):
        (root / name).write_bytes(b"1")
    (root / ".thumbnails").mkdir()
    (root / ".thumbnails" / "small.jpg").write_bytes(jpeg)
    good = {"png_named", "naïve mole, left", "twin.jpg", "twin.png", "inner", "cmyk", "rgba"}
    good |= {"grey", "sixteen", "one", "strip", "large", "animated", "turned"}
    return good, {*bad, "itself.jpg", "dangling.jpg", "pipe.jpg"}


def test_malformed_inputs_are_listed_and_every_good_image_is_predicted(
    workdir, tmp_path, monkeypatch, capsys
):
    good, bad = malformed(tmp_path / "in")
    read = Path.read_bytes

    def refusing(path):  # root may read everything
        if path.name == "forbidden.jpg":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refusing)
    out = tmp_path / "out" / "p.csv"
    status, rows = predict([workdir], [tmp_path / "in"], out, batch_size=4)
    assert status == 3
    assert set(rows) == good
    for row in rows.values():
        np.testing.assert_allclose(row.sum(), 1.0, rtol=1e-5)
    with (out.parent / "p.skipped.csv").open(encoding="utf-8") as file:
        header, *skipped = csv.reader(file)
    assert header == ["file", "reason"]
    assert {Path(file).name for file, _ in skipped} == bad
    reasons = {Path(file).name: reason for file, reason in skipped}
    assert "truncated" in reasons["truncated.jpg"].lower()
    assert "too large" in reasons["huge.png"]
    assert "Permission denied" in reasons["forbidden.jpg"]
    assert "not a regular file" in reasons["pipe.jpg"]
    said = capsys.readouterr().err
    assert "(9 problems)" in said
    assert "2 files share their name" in said
    for name in ("png_named.jpg", "naïve mole, left.JPG", "cmyk.jpg", "sixteen.png", "turned.jpg"):
        row = rows[os.path.splitext(name)[0]]
        np.testing.assert_allclose(row, expected(workdir, [tmp_path / "in" / name])[0], atol=1e-6)


def test_only_ten_are_shown_and_an_old_list_goes(workdir, tmp_path, capsys):
    broken = tmp_path / "in"
    broken.mkdir()
    for i in range(12):
        (broken / f"{i:02}.jpg").write_bytes(b"")
    Image.fromarray(noise(8, 8)).save(broken / "good.png")
    assert predict([workdir], [broken], tmp_path / "p.csv")[0] == 3
    said = capsys.readouterr().err
    assert "12 problems" in said
    assert said.count(".jpg") == 10
    assert "and 2 more" in said
    assert len((tmp_path / "p.skipped.csv").read_text().splitlines()) == 13
    assert predict([workdir], [broken / "good.png"], tmp_path / "p.csv")[0] == 0
    assert not (tmp_path / "p.skipped.csv").exists()


def test_a_file_named_itself_is_tried_whatever_its_name(workdir, tmp_path):
    Image.fromarray(noise(8, 8)).save(tmp_path / "b.data", "PNG")
    Image.fromarray(noise(8, 8)).save(tmp_path / ".a", "PNG")
    inputs = [tmp_path / "b.data", tmp_path / ".a", tmp_path / "b.data"]
    status, rows = predict([workdir], inputs, tmp_path / "p.csv")
    assert (status, list(rows)) == (0, ["b", ".a"])


def test_nothing_to_predict_is_an_error_of_one_sentence(workdir, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("")
    (tmp_path / "zero.jpg").write_bytes(b"")
    for inputs, message in (
        (["empty"], "empty holds no images"),
        (["gone.jpg"], "gone.jpg does not exist"),
        (["gone.jpg", "empty"], r"\(2 problems\)"),
        (["zero.jpg"], r"none of the images can be read \(1 problem\):\n.*zero.jpg: not an image"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            predict([workdir], [tmp_path / name for name in inputs], tmp_path / "p.csv")
        assert caught.value.exit_code == 2
    assert not (tmp_path / "p.csv").exists()


def test_an_output_that_cannot_be_written_is_said_before_the_work(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "Member", lambda *args, **kwargs: pytest.fail("work was begun"))
    (tmp_path / "file").write_text("")
    (tmp_path / "locked").mkdir()
    inside, image = tmp_path / "file" / "p.csv", folder / "image_00.png"

    def refused(*args, dir, **kwargs):
        raise PermissionError(13, "Permission denied")

    for out, options, message in (
        (inside, {}, r"file/p\.csv: cannot be written \(Not a dir"),
        (tmp_path, {}, "is a folder"),
        (image, {}, "is one of the images"),
        (tmp_path / "p.csv", {"explain_dir": inside}, r"file/p\.csv/.*: cannot be written"),
        (tmp_path / "p.csv", {"explain_dir": folder}, "image_00.png is one of the images"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            predict([tmp_path], [folder], out, **options)
        assert caught.value.exit_code == 2
    monkeypatch.setattr(files.tempfile, "TemporaryFile", refused)  # root may write everywhere
    with pytest.raises(UserError, match=r"cannot be written \(Permission denied\)"):
        predict([tmp_path], [folder], tmp_path / "locked" / "p.csv")


def test_nothing_of_the_user_is_replaced(workdir, folder, tmp_path):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(UserError, match=r"image_00\.png is one of the images"):
        predict([workdir], [tmp_path / "link"], tmp_path / "p.csv", explain_dir=folder)
    own = tmp_path / "own"
    own.mkdir()
    (own / "image_00.png").write_text("mine")
    with pytest.raises(UserError, match="holds other files, such as image_00"):
        predict([workdir], [folder], tmp_path / "p.csv", explain_dir=own)
    (tmp_path / "p.skipped.csv").write_text("mine")
    with pytest.raises(UserError, match="is not a list of images that were left out"):
        predict([workdir], [folder], tmp_path / "p.csv")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert (own / "image_00.png").read_text() == (tmp_path / "p.skipped.csv").read_text() == "mine"


def test_files_that_are_no_images_are_counted_aloud(workdir, folder, tmp_path, capsys):
    for name in ("b.jpg?width=6", "d.jpg_large", "notes.TXT", "more.txt", "Thumbs.db", ".hidden"):
        (folder / name).write_text("")
    assert predict([workdir], [folder], tmp_path / "p.csv")[0] == 0
    said = "not read: *.jpg?width=6 (1), *.jpg_large (1), *.txt (2)\n"
    assert said in capsys.readouterr().err


def test_a_folder_that_is_no_run_or_has_no_checkpoint_is_said(workdir, folder, tmp_path):
    with pytest.raises(UserError, match="is not the work folder of a run"):
        predict([tmp_path], [folder], tmp_path / "p.csv")
    untrained = tmp_path / "untrained"
    shutil.copytree(workdir, untrained, ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(UserError, match="no checkpoint yet"):
        predict([untrained], [folder], tmp_path / "p.csv")


def test_a_folder_that_cannot_be_read_is_listed(workdir, folder, tmp_path, monkeypatch):
    (folder / "locked").mkdir()
    scanned = os.scandir

    def refusing(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scanned(path)

    monkeypatch.setattr(os, "scandir", refusing)
    status, rows = predict([workdir], [folder], tmp_path / "p.csv")
    assert (status, len(rows)) == (3, 11)
    assert "locked,Permission denied" in (tmp_path / "p.skipped.csv").read_text()


@pytest.mark.parametrize(
    ("files", "ids", "ambiguous"),
    [
        (["/d/a.jpg", "/d/b.c.png"], ["a", "b.c"], 0),
        (["/d/a.jpg", "/d/a.png", "/d/b.png"], ["a.jpg", "a.png", "b"], 2),
        (["/d/x/a.jpg", "/d/y/a.jpg", "/d/a.png"], ["x/a.jpg", "y/a.jpg", "a.png"], 3),
        (["/d/a.jpg", "/d/a.png", "/d/a.jpg.png"], ["a.jpg", "a.png", "a.jpg.png"], 3),
        (["/d/caf\udce9.jpg"], ["caf\\udce9"], 0),
        ([], [], 0),
    ],
)
def test_ids_are_distinct(files, ids, ambiguous):
    assert prediction.image_ids(files) == (ids, ambiguous)


def test_names_that_are_no_text_are_predicted_and_listed(workdir, tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    try:
        for name in (b"caf\xe9.png", b"caf\xe8.png"):
            (root / os.fsdecode(name)).write_bytes(encoded(smooth(8, 8), "PNG"))
        (root / os.fsdecode(b"bad\xe9.png")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes only names in UTF-8")
    status, rows = predict([workdir], [root], tmp_path / "p.csv")
    assert (status, list(rows)) == (3, ["caf\\udce8", "caf\\udce9"])
    assert "bad\\udce9.png" in (tmp_path / "p.skipped.csv").read_text()


def test_the_number_of_decoded_images_alive_is_bounded(workdir, tmp_path, monkeypatch):
    root = tmp_path / "in"
    root.mkdir()
    for i in range(400):
        (root / f"{i:03}.jpg").touch()
    alive = most = 0
    lock = threading.Lock()

    def gone():
        nonlocal alive
        with lock:
            alive -= 1

    def decode(source, size):
        nonlocal alive, most
        image = np.zeros((size, size, 3), np.uint8)
        with lock:
            alive += 1
            most = max(most, alive)
        weakref.finalize(image, gone)
        return image

    monkeypatch.setattr(images, "decode", decode)
    monkeypatch.setattr(prediction, "workers", lambda most: 4)
    _, rows = predict([workdir], [root], tmp_path / "p.csv", batch_size=8)
    assert len(rows) == 400
    assert 8 <= most <= 3 * 8 + 4  # the batch at work, the one collected, the one being decoded
    assert alive == 0


def test_prediction_compiles_once(workdir, folder, tmp_path, monkeypatch):
    traced, jit = [], jax.jit

    def recording(function, **options):
        def record(*arguments):
            traced.append(function.__name__)
            return function(*arguments)

        return jit(record)

    monkeypatch.setattr(jax, "jit", recording)
    predict([workdir], [folder], tmp_path / "p.csv", batch_size=4)
    assert traced == ["predict"]


def test_overlays_of_every_good_image(workdir, other_workdir, folder, tmp_path):
    (folder / "image_03.png").rename(folder / "image_03.jpeg")
    Image.fromarray(noise(9, 9)).save(folder / "image_03.png")
    (folder / "zero.png").write_bytes(b"")
    seen = tmp_path / "seen"
    status, rows = predict(
        [workdir, other_workdir],
        [folder],
        tmp_path / "p.csv",
        batch_size=4,
        explain_dir=seen,
        overlay=heatmap.overlay,
    )
    assert status == 3
    assert {path.name for path in seen.glob("[!.]*")} == {f"{name}.png" for name in rows}
    with Image.open(seen / "image_03.jpeg.png") as picture:
        assert picture.width >= 2 * 256  # of the larger run's images
    plain, plain_rows = predict([workdir, other_workdir], [folder], tmp_path / "q.csv")
    assert plain == 3
    np.testing.assert_array_equal(list(rows), list(plain_rows))
    np.testing.assert_allclose(list(rows.values()), list(plain_rows.values()), atol=1e-6)


def test_overlays_show_the_task_s_map_of_the_predicted_class(
    workdir, folder, tmp_path, monkeypatch
):
    calls = []

    def overlay(image, heat_maps, caption):
        calls.append((image, heat_maps, caption))
        return b""

    monkeypatch.setattr(prediction, "workers", lambda most: 1)  # in order
    seen = tmp_path / "seen"
    _, rows = predict([workdir], [folder], tmp_path / "p.csv", explain_dir=seen, overlay=overlay)
    task, state, size = of_run(workdir)
    assert len(calls) == 11
    for (image, heat_maps, caption), (name, row) in zip(calls, rows.items(), strict=True):
        np.testing.assert_array_equal(image, images.decode(folder / f"{name}.png", size))
        label = int(row.argmax())
        assert caption == f"{HAM10000.titled(label)}  {row.max():.1%}"
        (heat_map,) = heat_maps
        own = task.explain(state, image[None], jnp.array([label], jnp.int32))[0]
        np.testing.assert_allclose(heat_map, own, atol=1e-5)


def test_tasks_that_do_not_classify_or_explain_are_refused(workdir, folder, tmp_path, monkeypatch):
    class Classifier(tasks.Task):
        def __init__(self, task):
            self.init, self.predict = task.init, task.predict

    class Nothing(tasks.Task):
        def __init__(self, task):
            self.init = task.init

    def opened_as(kind):
        def opened(workdir):
            run = run_lib.trained(workdir)
            return dataclasses.replace(run, task=kind(run.task))

        monkeypatch.setattr(prediction, "trained", opened)

    opened_as(Classifier)
    assert predict([workdir], [folder], tmp_path / "p.csv")[0] == 0
    with pytest.raises(UserError, match="does not explain"):
        predict([workdir], [folder], tmp_path / "p.csv", explain_dir=tmp_path / "seen")
    opened_as(Nothing)
    with pytest.raises(UserError, match="does not classify"):
        predict([workdir], [folder], tmp_path / "p.csv")


def files_in(place: Path) -> dict[str, bytes]:
    found = (path for path in place.rglob("*") if path.is_file())
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in found}


def shared(workdir, folder, out: Path, share, **options) -> int:
    options = {"batch_size": 2, "details": out / "d.csv", "progress": False} | options
    chosen = {"explain_dir": out / "maps", "overlay": heatmap.overlay} | options
    return prediction.predict_files(
        [workdir], [str(folder)], out / "p.csv", share=share and parts.Share(*share), **chosen
    )


@pytest.mark.parametrize("done", [(2, 0, 1), (1,)], ids=["all shares", "one of them"])
def test_shares_that_are_put_together_give_the_files_of_one_run(
    workdir, folder, tmp_path, monkeypatch, done
):
    (folder / "image_03b.png").write_bytes(b"no image")
    whole, together = tmp_path / "whole", tmp_path / "together"
    assert shared(workdir, folder, whole, None) == PARTIAL
    for number in done:
        assert shared(workdir, folder, together, (number, 3)) == 0
        assert not (together / "p.csv").exists()
    if len(done) == 3:  # nothing is left to decode
        monkeypatch.setattr(prediction.images, "decode", None)
    assert shared(workdir, folder, together, None) == PARTIAL
    assert files_in(together).keys() == files_in(whole).keys()
    said = {name: text.replace(b"together", b"whole") for name, text in files_in(together).items()}
    assert said == files_in(whole)


def test_shares_of_other_predictions_are_not_put_together(workdir, folder, tmp_path):
    shared(workdir, folder, tmp_path / "out", (0, 2))
    Image.fromarray(noise(20, 20)).save(folder / "image_00.png")
    with pytest.raises(UserError, match=r"p\.parts holds parts of predictions with .*images: "):
        shared(workdir, folder, tmp_path / "out", None)
    with pytest.raises(UserError, match="tta: False there, True now"):
        shared(workdir, folder, tmp_path / "out", (1, 2), tta=True)
