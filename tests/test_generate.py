import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from skin_jax import tasks
from skin_jax.base import devices, errors, files
from skin_jax.base.errors import UserError
from skin_jax.data import generated as generated_lib
from skin_jax.data import splits
from skin_jax.data.classes import HAM10000
from skin_jax.eval import candidates, generation
from skin_jax.eval.generation import Amount
from skin_jax.report import figures
from skin_jax.training.run import trained

pytestmark = pytest.mark.xdist_group("small_gan")  # one worker trains it, once


@pytest.fixture(scope="module")
def workdir(small_gan, tmp_path_factory):
    return shutil.copytree(small_gan, tmp_path_factory.mktemp("copy") / "tiny")


@pytest.fixture(scope="module")
def best(workdir):
    run = trained(workdir)
    return run.task, *run.best_state(devices.make_mesh(1))


@pytest.fixture(scope="module")
def favourite(best):
    """What two steps of training taught: the class into which nearly all images fall."""
    task, state, _ = best
    sampler = candidates.Sampler(task, task.generators(state), HAM10000.names, 0, "run")
    probabilities = candidates.predictor(task, state, "run")(sampler.batch(HAM10000.names[0], 0))
    return HAM10000.names[np.bincount(probabilities.argmax(axis=1)).argmax()]


@pytest.fixture
def run(generate_with, workdir):
    """main() with flags."""

    def main(out: Path, **chosen: object) -> None:
        generate_with(**{"workdir": workdir, "out": out, "min_confidence": 0.0} | chosen)

    return main


def disc(position: int, full: object = None) -> Iterator[candidates.Candidate | None]:
    """A stream without networks: image i has the class i mod 7; multiples of 3 are passed over.

    Vascular lesions never come.
    """
    for index in itertools.count(position):
        pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        name = HAM10000.names[min(index % 7, 5)]
        candidate = candidates.Candidate(name, index, float(np.float32(0.9)), 5, pixels)
        yield None if index % 3 == 0 else candidate


SETTINGS = {
    "seed": 1,
    "step": 5,
    "run": "tiny-0123",
    "train_split": "0" * 64,
    "min_confidence": 0.5,
}


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)


def test_amounts():
    real = dict(zip(HAM10000.names, (10, 0, 7, 3, 200, 101, 5), strict=True))

    def of(names, **amount):
        return Amount(**amount).of({name: real[name] for name in names})

    assert of(HAM10000.names) == dict.fromkeys(HAM10000.names, 100)
    assert of(("df", "nv"), per_class=4) == {"df": 4, "nv": 4}
    filled = of(("akiec", "bcc", "mel", "nv"), balance_to=101)
    assert filled == {"akiec": 91, "bcc": 101}  # mel has more, nv as many
    halves = of(HAM10000.names, ratio=0.5)
    assert halves == {"akiec": 5, "bkl": 4, "df": 2, "mel": 100, "nv": 51, "vasc": 3}
    assert list(halves) == [name for name in HAM10000.names if name != "bcc"]
    assert of(HAM10000.names, ratio=0.0) == {}


def test_folder_manifest_and_judgement(run, workdir, best, favourite, tmp_path, capfd):
    run(tmp_path / "out", per_class=9, classes=favourite)
    output = capfd.readouterr()
    assert f"{favourite} 9 of 9 (the last is number" in output.out
    assert f"{favourite} 9/9" in output.err  # the progress bar
    task, state, step = best
    rows = generated_lib.read(tmp_path / "out", HAM10000)
    assert [row.label for row in rows] == [favourite] * 9
    members = splits.members(workdir / "splits.csv", "train")
    for row in rows:
        assert row.image == f"{favourite}/{favourite}_0_{row.index}.png"
        assert (row.seed, row.step) == (0, step)
        assert row.run.startswith("tiny-")
        assert row.train_split == generated_lib.train_split_digest(members)
        scores = task.predict(state, jnp.asarray(pixels(tmp_path / "out" / row.image))[None])[0]
        assert HAM10000.names[int(scores.argmax())] == row.label
        assert row.confidence == pytest.approx(float(scores.max()), abs=1e-6)
    assert [row.index for row in rows] == sorted({row.index for row in rows})
    # Three columns and a half of 32 pixels, with gaps of 2, in rows of 8.
    assert pixels(tmp_path / "out" / "grids" / f"{favourite}.png").shape == (66, 270, 3)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(run, favourite, tmp_path):
    run(tmp_path / "a", per_class=5, classes=favourite)
    run(tmp_path / "b", per_class=5, classes=favourite)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    run(tmp_path / "c", per_class=70, classes=favourite)  # more than a batch
    few, many = (
        generated_lib.read(tmp_path / "a", HAM10000),
        generated_lib.read(tmp_path / "c", HAM10000),
    )
    assert many[:5] == few
    for row in few:
        assert contents(tmp_path / "a")[row.image] == contents(tmp_path / "c")[row.image]
    run(tmp_path / "d", per_class=5, classes=favourite, seed=1)
    first, other = (pixels(sorted(tmp_path.glob(f"{x}/{favourite}/*"))[0]) for x in "ad")
    assert not np.array_equal(first, other)


def fill(out, stream, wanted, *, max_tries=1000, **changes):
    out.mkdir(exist_ok=True)
    source = generation.Source(stream, SETTINGS | changes, max_tries)
    generation.fill(out, source, wanted, figures.image_grid)


def test_classes_fill_in_the_order_of_the_stream(tmp_path):
    fill(tmp_path / "out", disc, {"akiec": 3, "df": 2})
    rows = generated_lib.read(tmp_path / "out", HAM10000)
    by_class = {name: [r.index for r in rows if r.label == name] for name in ("akiec", "df")}
    assert by_class == {"akiec": [7, 14, 28], "df": [10, 17]}
    assert {row.confidence for row in rows} == {float(np.float32(0.9))}
    expected = next(disc(10))
    np.testing.assert_array_equal(pixels(tmp_path / "out" / "df/df_1_10.png"), expected.pixels)


def test_classes_that_do_not_come_end_with_a_partial_result(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="after drawing 100 images") as caught:
        fill(out, disc, {"df": 30, "vasc": 2}, max_tries=100)
    assert caught.value.exit_code == errors.PARTIAL
    assert "df 9 of 30 (the last is number 94), vasc 0 of 2" in str(caught.value)
    assert len(generated_lib.read(out, HAM10000)) == 9
    before = contents(out)
    with pytest.raises(UserError, match="after drawing 100 images"):
        fill(out, disc, {"df": 30, "vasc": 2}, max_tries=100)
    assert contents(out) == before


def test_a_partial_folder_goes_on_with_more_tries(tmp_path):
    out = tmp_path / "out"

    def stream(position, full):
        assert not (out / "manifest.csv").exists()  # a reader must not take it for finished
        yield from disc(position, full)

    for tries in (100, 400):
        with pytest.raises(UserError, match=f"after drawing {tries} images"):
            fill(out, stream, {"df": 30, "vasc": 2}, max_tries=tries)
        assert len(generated_lib.read(out, HAM10000)) == (9 if tries == 100 else 30)
    with pytest.raises(UserError, match="df 30 of 30"):
        fill(tmp_path / "whole", disc, {"df": 30, "vasc": 2}, max_tries=400)
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("after", range(11))
def test_an_interrupted_folder_ends_as_an_undisturbed_one(tmp_path, monkeypatch, after):
    """The write after `after` others never happens; half of the file lies there under a name."""
    wanted = {"akiec": 40, "mel": 30}
    monkeypatch.setattr(generation, "_SECONDS_BETWEEN_SAVES", 0.0 if after % 2 else 1e9)
    real, left = files.write_atomically, [10**6]

    def failing(path, content):
        if left[0] == 0:
            path.parent.mkdir(exist_ok=True)
            path.with_name(f".{path.name}.abc").write_text("half")
            raise KeyboardInterrupt
        left[0] -= 1
        real(path, content)

    monkeypatch.setattr(generation, "write_atomically", failing)
    monkeypatch.setattr(generated_lib, "write_atomically", failing)
    fill(tmp_path / "whole", disc, wanted)
    writes = 10**6 - left[0]
    left[0] = after * 9
    out = tmp_path / "out"
    interrupted = False
    try:
        fill(out, disc, wanted)
    except KeyboardInterrupt:
        interrupted = True
    assert interrupted == (after * 9 < writes)
    if interrupted:
        with pytest.raises(UserError, match="has no manifest"):
            generated_lib.read(out, HAM10000)
    left[0] = 10**6
    fill(out, disc, wanted)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_complete_folder_says_so_and_lost_images_come_again(tmp_path, capsys):
    out = tmp_path / "out"
    fill(out, disc, {"df": 4})
    before = contents(out)

    def never(position, full):
        raise AssertionError("nothing is left to draw")
        yield

    capsys.readouterr()
    fill(out, never, {"df": 4})
    assert f"{out} is complete: df 4 of 4" in capsys.readouterr().out
    (out / "manifest.csv").unlink()
    fill(out, never, {"df": 4})
    assert contents(out) == before
    (out / "df" / "df_1_10.png").unlink()
    fill(out, disc, {"df": 4})
    assert "1 images of" in capsys.readouterr().err
    assert contents(out) == before


def test_a_folder_of_other_settings_is_refused_by_name(tmp_path):
    out = tmp_path / "out"
    fill(out, disc, {"df": 4})
    before = contents(out)
    with pytest.raises(UserError) as caught:
        fill(out, disc, {"df": 5, "mel": 1}, seed=2, step=6, min_confidence=0.6)
    for words in (
        "seed: 1 there, 2 now",
        "step: 5 there, 6 now",
        "min_confidence: 0.5 there, 0.6 now",
        "images.df: 4 there, 5 now",
        "images.mel: None there, 1 now",
    ):
        assert words in str(caught.value)
    assert "run:" not in str(caught.value)
    assert contents(out) == before
    (out / generation.PROGRESS).write_text('{"settings": ')
    with pytest.raises(UserError, match=r"generation.json is damaged"):
        fill(out, disc, {"df": 4})


def test_refusals_are_one_sentence(run, workdir, tmp_path, monkeypatch):
    def refused(match, **chosen):
        with pytest.raises(UserError, match=match) as caught:
            run(**{"out": tmp_path / "out"} | chosen)
        assert caught.value.exit_code == errors.BAD_INPUT
        assert not (tmp_path / "out").exists()

    refused("give both --workdir=DIR and --out=DIR", workdir="")
    refused("is not the work folder of a run", workdir=tmp_path)
    refused("unknown class 'wart'; known: akiec, bcc", classes="df,wart")
    refused("unknown class", classes="")
    refused("--per_class and --ratio exclude each other", per_class=3, ratio=1.0)
    refused("no class needs any images", balance_to=1)
    (tmp_path / "file").write_text("")
    refused("file cannot be written", out=tmp_path / "file")
    refused("cannot be written", out=tmp_path / "file" / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    refused(
        "mine holds other files, such as notes.txt, and no generation.json", out=tmp_path / "mine"
    )
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]

    untrained = tmp_path / "untrained"
    shutil.copytree(workdir, untrained, ignore=shutil.ignore_patterns("checkpoints"))
    refused("no checkpoint yet", workdir=untrained)
    (untrained / "checkpoints").mkdir()
    refused("no checkpoint yet", workdir=untrained)

    monkeypatch.setattr(tasks.TASKS["sgan"], "build", lambda *args: tasks.Task())
    refused("a run of its task, Task, does not generate images")


def test_the_checkpoint_of_a_step(run, best, favourite, tmp_path):
    step = best[2]
    run(tmp_path / "best", per_class=3, classes=favourite)
    run(tmp_path / "step", per_class=3, classes=favourite, step=step)
    assert contents(tmp_path / "step") == contents(tmp_path / "best")
    with pytest.raises(UserError, match=f"no checkpoint of step 77; there are those of {step}"):
        run(tmp_path / "absent", per_class=3, step=77)


def test_balance_to_reads_the_training_split(run, workdir, favourite, tmp_path):
    real = splits.class_counts(workdir / "splits.csv", "train", HAM10000)[
        HAM10000.names.index(favourite)
    ]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".generation.json.abc").write_text("half, from before a kill")
    run(tmp_path / "out", balance_to=real + 3, classes=favourite)
    assert not (tmp_path / "out" / ".generation.json.abc").exists()
    assert len(generated_lib.read(tmp_path / "out", HAM10000)) == 3


def test_killed_and_started_again_on_another_number_of_devices(run, workdir, favourite, tmp_path):
    """The generate itself, ended by kill -9 while it writes."""
    out, whole, count = tmp_path / "out", tmp_path / "whole", 1500
    command = [
        *(sys.executable, "-m", "skin_jax.generate", f"--workdir={workdir}", f"--out={out}"),
        *(f"--classes={favourite}", f"--per_class={count}", "--min_confidence=0"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while len(list(out.glob("*/*.png"))) < 100:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (out / "manifest.csv").exists()
    one = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=one)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert jax.device_count() > 1
    run(whole, classes=favourite, per_class=count)
    assert contents(out) == contents(whole)
    assert len(generated_lib.read(out, HAM10000)) == count


def test_help_imports_nothing_heavy():
    code = (
        "import sys, skin_jax.generate\n"
        "heavy = {'jax', 'numpy', 'PIL', 'tqdm', 'tensorflow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("done", [("1/2", "0/2"), ("2/3",)], ids=["all shares", "one of them"])
def test_shares_that_are_put_together_give_the_folder_of_one_run(run, favourite, tmp_path, done):
    whole, together = tmp_path / "whole", tmp_path / "together"
    run(whole, per_class=150, classes=favourite)
    for share in done:
        run(together, per_class=150, classes=favourite, shard=share)
        assert not (together / "manifest.csv").exists()
    with pytest.raises(UserError, match=r"parts of images with other settings.*seed: 0 there, 1"):
        run(together, per_class=150, classes=favourite, shard=done[0], seed=1)
    run(together, per_class=150, classes=favourite)
    assert contents(together) == contents(whole)


def test_every_image_of_a_share_is_drawn_once(run, favourite, tmp_path, monkeypatch):
    drawn = []
    batches = candidates.Sampler.batches
    monkeypatch.setattr(
        candidates.Sampler, "batches", lambda self, jobs: drawn.append(jobs) or batches(self, jobs)
    )
    for share in ("0/2", "0/2", "1/2"):
        run(tmp_path / "out", per_class=400, classes=favourite, shard=share)
    run(tmp_path / "out", per_class=400, classes=favourite)
    firsts = [job.first for jobs in drawn for job in jobs]
    assert len(firsts) == len(set(firsts)) >= 400 / 64
    assert max(map(len, drawn)) == jax.local_device_count()  # side by side
