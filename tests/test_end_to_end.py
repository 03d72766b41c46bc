"""The command line as a user has it: real processes, real signals."""

import ast
import csv
import json
import os
import re
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from skin_jax.__main__ import COMMANDS
from skin_jax.base import errors

pytestmark = pytest.mark.xdist_group("end_to_end")  # one worker makes the fixtures, once

ROOT = Path(__file__).parents[1]
TINY = [
    "--config.num_steps=12",
    "--config.batch_size=8",
    "--config.eval_every_steps=4",
    "--config.checkpoint.every_steps=2",
    "--config.log.every_steps=1",
    "--config.data.demo_images=80",
    "--config.model.width=4",
    "--config.data.pipeline=device",
    "--config.sharding.num_devices=1",
]


def command(workdir, *args, module="skin_jax.main", config="configs/demo.py:smoke") -> list[str]:
    where = [f"--workdir={workdir}"] if workdir else []
    chosen = [f"--config={config}"] if module == "skin_jax.main" else []
    return [sys.executable, "-m", module, *chosen, *where, *args]


def call(*args, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(*args, **kwargs), cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def interrupt_at(workdir, line: str, kill) -> int:
    """Starts a run, sends it a signal once it prints `line`, and returns its exit status."""
    process = subprocess.Popen(
        command(workdir, *TINY), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for printed in process.stdout:
        if printed.startswith(line):
            kill(process)
            break
    process.communicate(timeout=300)
    return process.returncode


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    result = call(workdir, *TINY)
    assert result.returncode == 0, result.stderr
    return workdir


def outcome(workdir) -> tuple[str, str]:
    """The digest of the last state, and the predictions of the best one."""
    digest = json.loads((workdir / "checkpoints/12/digest/metadata").read_text())["blake2b"]
    return digest, (workdir / "eval/test/predictions.csv").read_text()


@pytest.mark.parametrize(
    ("line", "kill", "status"),
    [
        ("step 9/", lambda process: process.kill(), -9),
        pytest.param(
            "step 5/",
            lambda process: process.terminate(),
            errors.PREEMPTED,
            marks=pytest.mark.soak,
        ),
        ("step 5/", lambda process: process.send_signal(signal.SIGINT), errors.INTERRUPTED),
    ],
    ids=["kill -9", "SIGTERM", "Ctrl-C"],
)
def test_an_interrupted_run_ends_like_an_undisturbed_one(tmp_path, undisturbed, line, kill, status):
    assert interrupt_at(tmp_path / "run", line, kill) == status
    saved = [path.name for path in (tmp_path / "run/checkpoints").iterdir() if path.name.isdigit()]
    result = call(tmp_path / "run", *TINY)
    assert result.returncode == 0, result.stderr
    assert f"resuming at step {max(map(int, saved))} " in result.stdout
    assert outcome(tmp_path / "run") == outcome(undisturbed)


def test_a_run_is_evaluated_again_from_elsewhere_on_other_devices(tmp_path, undisturbed):
    result = subprocess.run(
        command(undisturbed, "--split=val", f"--out={tmp_path}", module="skin_jax.eval"),
        cwd=tmp_path,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "3", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["num_examples"] == (undisturbed / "splits.csv").read_text().count(",val")


def test_a_pair_of_csvs_gives_the_metrics_of_the_run(tmp_path, undisturbed):
    columns = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
    lines = [",".join(["image", *columns])]
    for row in csv.DictReader((undisturbed / "splits.csv").read_text().splitlines()):
        if row["split"] == "test":
            one_hot = [str(float(column.lower() == row["label"])) for column in columns]
            lines.append(",".join([row["image"], *one_hot]))
    (tmp_path / "truth.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    predictions = undisturbed / "eval/test/predictions.csv"
    result = call(
        None,
        f"--predictions={predictions}",
        f"--truth={tmp_path / 'truth.csv'}",
        f"--out={tmp_path / 'out'}",
        module="skin_jax.eval",
    )
    assert result.returncode == 0, result.stderr
    names = ("balanced_accuracy", "macro", "per_class", "confusion_matrix", "ece")
    again, first = (
        json.loads((folder / "metrics.json").read_text())
        for folder in (tmp_path / "out", undisturbed / "eval/test")
    )
    assert {name: again[name] for name in names} == {name: first[name] for name in names}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "give --workdir=DIR"),
        (["--predictions=p.csv"], "needs all of --predictions, --truth and --out"),
        (["--workdir=nowhere"], "not the work folder of a run"),
        (["--workdir=x", "--data_dir=y"], "give --out=DIR"),
        (["--workdir=x", "more"], "unexpected argument 'more'"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, list) else None,
)
def test_wrong_calls_of_eval_are_one_sentence_and_status_2(args, words):
    result = call(None, *args, module="skin_jax.eval")
    assert result.returncode == errors.BAD_INPUT
    assert result.stderr.startswith("error: ")
    assert words in result.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--config.batchsize=3"], ["--config.batchsize", "did you mean --config.batch_size"]),
        (["--config.batch_size=many"], ["config.batch_size", "many"]),
        (["--workdirs=x"], ["workdirs"]),
        (["--config.dat.dir=x"], ["--config.dat.dir", "did you mean --config.data.dir"]),
        (["more"], ["unexpected argument 'more'"]),
        (["--config.data.dir=/no/such/folder"], ["/no/such/folder"]),
        (["--config.data.demo_images=0"], ["--config.data.dir=FOLDER", "--config.data.download"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_bad_usage_is_one_sentence_and_status_2(tmp_path, args, words):
    result = call(tmp_path / "run", *args)
    assert result.returncode == errors.BAD_INPUT, result.stderr
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


def test_a_configuration_that_fails_is_named_with_its_line(tmp_path):
    path = tmp_path / "bad.py"
    for content in ("import nothing_of_this_name\n", "def get_config(:\n", "x = 1\n"):
        path.write_text(content)
        result = call(tmp_path / "run", "--config.seed=1", config=str(path))
        assert result.returncode == errors.BAD_INPUT, result.stderr
        assert str(path) in result.stderr
        assert "Traceback" not in result.stderr
    without = subprocess.run(
        [sys.executable, "-m", "skin_jax.main", "--workdir=x", "--config.seed=1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert without.returncode == errors.BAD_INPUT
    assert "needs --config=NAME" in without.stderr


def test_a_configuration_of_the_package_is_found_from_anywhere_wherever_it_is_named(tmp_path):
    words = ["--config.num_steps=0", "--workdir=run", "--config=demo:smoke", "--config.seed=1"]
    result = subprocess.run(
        [sys.executable, "-m", "skin_jax.main", *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == errors.BAD_INPUT
    assert result.stderr == "error: config.num_steps is '0'; it must be at least 1\n"
    assert not list(tmp_path.iterdir())


def test_the_package_lists_its_commands_and_names_the_one_that_trains():
    listed = call(None, module="skin_jax")
    assert listed.returncode == 0
    for name in COMMANDS:
        source = Path(find_spec(f"skin_jax.{name}").origin)
        if source.name == "__init__.py":
            source = source.with_name("__main__.py")
        first = ast.get_docstring(ast.parse(source.read_text())).splitlines()[0]
        assert re.search(rf"python -m skin_jax\.{name} +{re.escape(first)}\n", listed.stdout)
    named = call(None, "train", module="skin_jax")
    assert named.returncode == errors.BAD_INPUT
    assert "python -m skin_jax.main" in named.stderr
    assert named.stderr.startswith("error: ")


def test_a_study_is_sent_to_its_own_command(tmp_path):
    result = call(tmp_path, config="configs/study_table2.py")
    assert result.returncode == errors.BAD_INPUT
    assert result.stderr.startswith(
        "error: this configuration is a study: run it with skin_jax.study"
    )


def test_a_missing_configuration_and_a_missing_workdir_are_named(tmp_path):
    missing = call(tmp_path, config="configs/none.py")
    assert missing.returncode == errors.BAD_INPUT
    assert "there is no file configs/none.py" in missing.stderr
    assert "Traceback" not in missing.stderr
    assert call(None).returncode == errors.BAD_INPUT


@pytest.mark.parametrize(
    "module", ["skin_jax.main", "skin_jax.eval", "skin_jax.prepare", "skin_jax.study"]
)
def test_help_says_how_without_loading_jax(module):
    code = (
        "import runpy, sys; sys.argv = ['x', '--help']\n"
        "try:\n"
        f"    runpy.run_module('{module}', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0, end.code\n"
        "assert 'jax' not in sys.modules\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert "--" in result.stdout


@pytest.mark.skipif(not os.environ.get("SKIN_JAX_TEST_DATA"), reason="no real images here")
def test_the_smoke_variant_of_the_paper_runs_on_real_images(tmp_path, real_data):
    settings = [f"--config.data.dir={real_data}", f"--config.data.cache_dir={tmp_path / 'cache'}"]
    result = call(tmp_path / "run", *settings, config="configs/sgan.py:smoke")
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "run/eval/test/metrics.json").read_text())
    assert metrics["num_examples"] == (tmp_path / "run/splits.csv").read_text().count(",test")
    assert min(row["support"] for row in metrics["per_class"].values()) > 5
    saved = {int(path.stem[5:]) for path in (tmp_path / "run/samples").glob("step_*.png")}
    assert saved == {10, 20, 30, 40}
