"""skin_jax.generate on runs with a generator for each class."""

import re
import shutil
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import skin_jax
from skin_jax.base import devices, errors, files
from skin_jax.base.errors import UserError
from skin_jax.data import demo, splits
from skin_jax.data import generated as generated_lib
from skin_jax.data.classes import HAM10000
from skin_jax.eval import generation
from skin_jax.tasks.augment import to_uint8
from skin_jax.tasks.declared import dcgan
from skin_jax.training import checkpoints as checkpoint_lib
from skin_jax.training.run import start, trained

pytestmark = pytest.mark.xdist_group("generate_dcgan")  # one worker makes the fixtures, once

NAMES = ("bcc", "df", "mel")
SMALL = {
    "classes": NAMES,
    "batch_size": 8,
    "data.demo_images": demo.MIN_IMAGES,
    "data.image_size": 32,
    "data.pipeline": "device",
    "model.width": 4,
    "sharding.num_devices": 1,
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run whose generators were kept at steps 2, 4 and 6, without the minutes of its training.

    That of bcc was best at step 2 and that of mel at step 4; df was never scored.
    """
    config = dcgan.defaults()
    config.update_from_flattened_dict(SMALL)
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    experiment = start(config, folder)
    init = jax.jit(experiment.task.init)
    kept = checkpoint_lib.Checkpoints(folder / checkpoint_lib.GENERATORS, keep_all=True)
    generators = {}
    for step in (2, 4, 6):
        # Initial weights are small, and their images all but grey.
        state = jax.tree.map(
            lambda leaf: 5 * leaf if leaf.ndim > 1 else leaf, init(jax.random.key(step))
        )
        generators[step] = experiment.task.generators(state)
        kept.save(step, generators[step], None)
    kept.close()
    checkpoints = checkpoint_lib.Checkpoints(folder / "checkpoints")
    best = jax.tree.map(lambda a, b: a.at[2].set(b[2]), generators[2], generators[4])
    scores, steps = np.array([0.1, np.inf, 0.2], np.float32), np.array([2, 0, 4], np.int32)
    checkpoints.save(6, state.replace(best=best, best_score=scores, best_step=steps), None)
    checkpoints.close()
    return folder


@pytest.fixture(scope="module")
def generators_at(workdir):
    run = trained(workdir)
    mesh = devices.make_mesh(1)
    return lambda step: (run.task, run.drawn_from(mesh, step).generators)


@pytest.fixture(scope="module")
def run(generate_with, workdir):
    """main() with flags."""

    def main(out: Path, **chosen: object) -> None:
        generate_with(**{"workdir": workdir, "out": out} | chosen)

    return main


@pytest.fixture(scope="module")
def seventy(run, tmp_path_factory):
    """More than a batch of each class."""
    out = tmp_path_factory.mktemp("seventy")
    run(out, per_class=70)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def images_of(task, generators, name: str, seed: int, indices) -> np.ndarray:
    """Each image drawn alone, int [N, 32, 32, 3]."""
    key = jax.random.fold_in(jax.random.key(seed), HAM10000.names.index(name))
    label = HAM10000.names.index(name)
    drawn = [
        to_uint8(task.images_of(generators, label, task.noise(jax.random.fold_in(key, i)[None])))
        for i in indices
    ]
    return np.concatenate(drawn).astype(int)


def test_each_class_has_its_best_generator(run, workdir, generators_at, tmp_path, capsys):
    run(tmp_path / "out", per_class=5, seed=3)
    output = capsys.readouterr()
    assert f"{workdir} has no score yet for its generators of df: the newest ones are used" in (
        output.err
    )
    assert "bcc 5 of 5 (the last is number 4), df 5 of 5 (the last is number 4)" in output.out
    rows = generated_lib.read(tmp_path / "out", HAM10000)
    steps = {"bcc": 2, "df": 6, "mel": 4}
    assert [(row.label, row.index, row.step) for row in rows] == [
        (name, index, step) for name, step in steps.items() for index in range(5)
    ]
    members = splits.members(workdir / "splits.csv", "train")
    for row in rows:
        assert row.image == f"{row.label}/{row.label}_3_{row.index}.png"
        assert (row.confidence, row.seed) == (1.0, 3)
        assert row.run.startswith("tiny-")
        assert row.train_split == generated_lib.train_split_digest(members)
    for name, step in steps.items():
        expected = images_of(*generators_at(step), name, 3, range(5))
        for index in range(5):
            found = pixels(tmp_path / "out" / name / f"{name}_3_{index}.png")
            # One level: the arithmetic of a batch of one may differ in the last bit.
            np.testing.assert_allclose(found, expected[index], atol=1)
    assert len({path.read_bytes() for path in (tmp_path / "out").glob("*/*_3_*.png")}) == 15


def test_images_depend_neither_on_the_other_classes_nor_on_their_number(run, seventy, tmp_path):
    run(tmp_path / "one", per_class=5, classes="mel")
    many, few = (
        generated_lib.read(seventy, HAM10000),
        generated_lib.read(tmp_path / "one", HAM10000),
    )
    assert few == [row for row in many if row.label == "mel"][:5]
    ours, theirs = contents(tmp_path / "one"), contents(seventy)
    for row in few:
        assert ours[row.image] == theirs[row.image]
    assert ours["grids/mel_walk.png"] == theirs["grids/mel_walk.png"]
    run(tmp_path / "other", per_class=5, classes="mel", seed=1)
    first = contents(tmp_path / "other")["mel/mel_1_0.png"]
    assert first != ours["mel/mel_0_0.png"]


def test_walks_end_at_images_of_the_folder(run, tmp_path):
    out = tmp_path / "out"
    run(out, per_class=16, classes="df,bcc")
    assert {path.name for path in (out / "grids").iterdir()} == {
        *("bcc.png", "bcc_walk.png", "df.png", "df_walk.png")
    }
    for name in ("bcc", "df"):
        walk = pixels(out / "grids" / f"{name}_walk.png")
        assert walk.shape == (270, 270, 3)
        # Cells of 32 pixels and gaps of 2, the gap of the last row and column cut off.
        cells = np.pad(walk, ((0, 2), (0, 2), (0, 0))).reshape(8, 34, 8, 34, 3).swapaxes(1, 2)
        cells = cells[:, :, :32, :32]
        for row in range(8):
            for column, index in ((0, 2 * row), (7, 2 * row + 1)):
                image = pixels(out / name / f"{name}_0_{index}.png")
                np.testing.assert_allclose(cells[row, column], image, atol=1)


def test_balance_to_and_ratio_read_the_training_split(run, workdir, tmp_path):
    real = splits.class_counts(workdir / "splits.csv", "train", HAM10000)
    real = {name: int(real[HAM10000.names.index(name)]) for name in NAMES}
    full = max(real.values())
    run(tmp_path / "out", balance_to=full + 2)
    made = Counter(row.label for row in generated_lib.read(tmp_path / "out", HAM10000))
    assert made == {name: full + 2 - count for name, count in real.items()}
    run(tmp_path / "twice", ratio=2.0, classes="df")
    assert len(generated_lib.read(tmp_path / "twice", HAM10000)) == 2 * real["df"]


def test_step_takes_what_was_kept_then(run, generators_at, tmp_path):
    run(tmp_path / "best", per_class=2)
    run(tmp_path / "two", per_class=2, step=2)
    rows = generated_lib.read(tmp_path / "two", HAM10000)
    assert {row.step for row in rows} == {2}
    assert {row.run for row in rows}.isdisjoint(
        row.run for row in generated_lib.read(tmp_path / "best", HAM10000)
    )
    best, two = contents(tmp_path / "best"), contents(tmp_path / "two")
    assert best["bcc/bcc_0_0.png"] == two["bcc/bcc_0_0.png"]  # its best step
    for name in ("df", "mel"):
        assert best[f"{name}/{name}_0_0.png"] != two[f"{name}/{name}_0_0.png"]
    np.testing.assert_allclose(
        pixels(tmp_path / "two/df/df_0_1.png"),
        images_of(*generators_at(2), "df", 0, [1])[0],
        atol=1,
    )


def test_a_step_of_a_checkpoint_needs_no_kept_generators(run, workdir, tmp_path):
    run(tmp_path / "kept", per_class=2, step=6)
    copy = tmp_path / "tiny"
    shutil.copytree(workdir, copy, ignore=lambda *_: ["generators"])
    run(tmp_path / "checkpoint", per_class=2, step=6, workdir=copy)
    assert contents(tmp_path / "checkpoint") == contents(tmp_path / "kept")


@pytest.mark.parametrize("after", [20, 73, 150])
def test_an_interrupted_folder_ends_as_an_undisturbed_one(
    run, seventy, tmp_path, monkeypatch, after
):
    """The write after `after` others never happens; half of the file lies there under a name."""
    monkeypatch.setattr(generation, "_SECONDS_BETWEEN_SAVES", 1e9 if after == 73 else 0.01)
    real, left = files.write_atomically, [after]

    def failing(path, content):
        if left[0] == 0:
            path.parent.mkdir(exist_ok=True)
            path.with_name(f".{path.name}.abc").write_text("half")
            raise KeyboardInterrupt
        left[0] -= 1
        real(path, content)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(generation, "write_atomically", failing)
        patch.setattr(generated_lib, "write_atomically", failing)
        with pytest.raises(KeyboardInterrupt):
            run(out, per_class=70)
    with pytest.raises(UserError, match="has no manifest"):
        generated_lib.read(out, HAM10000)
    run(out, per_class=70)
    assert contents(out) == contents(seventy)


def test_a_complete_folder_says_so_and_one_of_other_settings_is_refused(run, tmp_path, capsys):
    out = tmp_path / "out"
    run(out, per_class=3)
    before = contents(out)
    capsys.readouterr()
    run(out, per_class=3)
    assert f"{out} is complete: bcc 3 of 3" in capsys.readouterr().out
    for changes, words in (
        ({"per_class": 4}, "images.bcc: 3 there, 4 now"),
        ({"per_class": 3, "step": 2}, "step.mel: 4 there, 2 now"),
        ({"per_class": 3, "seed": 9}, "seed: 0 there, 9 now"),
        ({"per_class": 3, "classes": "df"}, "images.mel: 3 there, None now"),
    ):
        with pytest.raises(UserError, match=f"holds images with other settings.*{words}"):
            run(out, **changes)
    assert contents(out) == before


def test_refusals_are_one_sentence(run, workdir, tmp_path):
    def refused(match, **chosen):
        with pytest.raises(UserError, match=match) as caught:
            run(**{"out": tmp_path / "out"} | chosen)
        assert caught.value.exit_code == errors.BAD_INPUT
        assert not (tmp_path / "out").exists()

    refused("has no generator of nv; it has those of bcc, df, mel", classes="df,nv")
    refused("unknown class 'wart'", classes="df,wart")
    refused("has no generators of step 5; there are those of 2, 4, 6", step=5)
    refused(
        "leave out --min_confidence: the generators of .* are told the class", min_confidence=0.5
    )
    refused("leave out --max_tries: .* are told the class, .* or for --filter", max_tries=10)
    refused("no class needs any images", balance_to=1)

    bare = tmp_path / "bare"
    shutil.copytree(workdir, bare, ignore=shutil.ignore_patterns("checkpoints", "generators"))
    before = {path.name for path in bare.iterdir()}
    refused("no checkpoint yet", workdir=bare)
    refused("has no generators of step 5; there are none", workdir=bare, step=5)
    assert {path.name for path in bare.iterdir()} == before


def test_damaged_generators_are_said(run, workdir, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(workdir, damaged)
    digest = damaged / "generators" / "4" / "digest" / "metadata"
    digest.write_text(re.sub('"blake2b": *"[0-9a-f]+"', '"blake2b": "0"', digest.read_text()))
    with pytest.raises(UserError, match=r"generators/4 cannot be read \(its contents have digest"):
        run(tmp_path / "out", workdir=damaged, step=4)
    assert not (tmp_path / "out").exists()


def test_python_draws_and_walks_within_a_class(workdir):
    opened = skin_jax.load(workdir)
    assert opened.generates == NAMES
    walked = opened.walk("mel", seed=2)
    np.testing.assert_array_equal(walked[[0, -1]], opened.generate("mel", 2, seed=2))
    assert not opened.can("walk")
    with pytest.raises(UserError, match="does not know what lies between classes"):
        opened.walk("mel", "bcc")
    with pytest.raises(UserError, match="it has generators of bcc, df, mel"):
        opened.walk("nv")


@pytest.mark.parametrize("done", [("0/4", "1/4", "2/4", "3/4"), ("1/2",)], ids=len)
def test_shares_that_are_put_together_give_the_folder_of_one_run(run, seventy, tmp_path, done):
    out = tmp_path / "out"
    for share in done:
        run(out, per_class=70, shard=share)
    run(out, per_class=70)
    assert contents(out) == contents(seventy)


def test_one_device_draws_what_four_draw_side_by_side(run, seventy, tmp_path, monkeypatch):
    monkeypatch.setattr(generation.devices, "make_mesh", lambda _, make=devices.make_mesh: make(1))
    run(tmp_path / "out", per_class=70)
    assert contents(tmp_path / "out") == contents(seventy)
