"""launch/tpu_vm.sh, without a cloud: the commands that it would run."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "NAME": "slice",
    "ZONE": "us-east1-d",
    "TYPE": "v6e-16",
    "VERSION": "v2-alpha-tpuv6e",
    "IMAGE": "us-docker.pkg.dev/project/images/skin_jax:tpu",
    "STORE": "gs://bucket",
}


def call(*args: str, dry_run: bool = True, **settings: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [ROOT / "launch/tpu_vm.sh", *(["--dry-run"] if dry_run else []), *args],
        env={"PATH": os.environ["PATH"]} | SETTINGS | settings,
        capture_output=True,
        text=True,
        timeout=60,
    )


def command(*args: str, **settings: str) -> list[str]:
    """The one command that it would run, in its words, after what they all begin with."""
    result = call(*args, **settings)
    assert result.returncode == 0, result.stderr
    in_a_shell = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {result.stdout}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    words = in_a_shell.stdout.split("\0")[:-1]
    assert words[:4] == ["gcloud", "compute", "tpus", "tpu-vm"]
    assert "--zone=us-east1-d" in words
    return words[4:]


def test_create_and_delete_name_the_slice():
    words = command("create")
    assert words[:2] == ["create", "slice"]
    assert {"--accelerator-type=v6e-16", "--version=v2-alpha-tpuv6e"} < set(words)
    assert "--spot" not in words
    assert "--spot" in command("create", SPOT="1")
    assert command("delete")[:3] == ["delete", "slice", "--quiet"]


@pytest.mark.parametrize(
    ("store", "mount"),
    [
        ("gs://bucket", "sudo gcsfuse --implicit-dirs -o allow_other bucket /mnt/skin_jax"),
        ("10.0.0.2:/share", "sudo mount -t nfs 10.0.0.2:/share /mnt/skin_jax"),
    ],
)
def test_run_starts_the_image_on_every_worker(store, mount, tmp_path):
    run = ["--config=configs/sgan.py", "--workdir=/mnt/skin_jax/a b", "--config.seed=3"]
    words = command("run", *run, STORE=store)
    assert words[:3] == ["ssh", "slice", "--worker=all"]
    (script,) = (word.removeprefix("--command=") for word in words if word.startswith("--command="))
    assert mount in script.splitlines()
    (line,) = (line for line in script.splitlines() if line.startswith("sudo docker run"))
    words = shlex.split(line.removesuffix("> /dev/null"))
    assert words[words.index(SETTINGS["IMAGE"]) + 1 :] == run
    (tmp_path / "script").write_text(script)
    subprocess.run(["bash", "-n", tmp_path / "script"], check=True, timeout=60)


# Keeps the one container that it knows in files, and writes down what starts and what is removed.
DOCKER = """
case $1 in
  inspect) [ -e label ] || exit 1
    [ -e status ] && echo "false $(cat label)" || echo "true $(cat label)" ;;
  rm) [ -e status ] || exit 1
    echo removed >> calls; rm -f label status ;;
  run) echo started >> calls
    while [ "$1" != --label ]; do shift; done
    echo "${2#call=}" > label ;;
  logs) echo "what it prints"; if [ ! -e status ]; then kill -KILL $PPID; fi ;;
  wait) cat status ;;
  stop) echo 143 > status ;;
esac
"""


@pytest.fixture
def worker(tmp_path):
    """Runs what `run` has a worker do, with stand-ins; a run ends when its status is there."""
    folder = tmp_path / "worker"
    (folder / "bin").mkdir(parents=True)
    scripts = {"docker": DOCKER, "sudo": 'exec "$@"', "mountpoint": "exit 0", "gcloud": "echo key"}
    for name, text in scripts.items():
        path = folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def call(*run: str) -> subprocess.CompletedProcess:
        (script,) = (w.removeprefix("--command=") for w in command("run", *run) if "docker" in w)
        return subprocess.run(
            ["bash", "-c", script],
            cwd=folder,
            env={"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=60,
        )

    call.folder = folder
    return call


def test_a_lost_connection_leaves_the_run_and_the_same_command_follows_it(worker):
    run, calls = ["--workdir=/mnt/skin_jax/a b", "--config=x"], worker.folder / "calls"
    assert worker(*run).returncode < 0  # hung up
    assert calls.read_text() == "started\n"
    other = worker("--workdir=/mnt/skin_jax/other")
    assert other.returncode == 2
    assert other.stderr.startswith("error: another run is training on this slice")
    (worker.folder / "status").write_text("75\n")
    (worker.folder / "status").rename(worker.folder / "later")
    again = worker(*run)
    assert again.returncode < 0
    assert again.stderr.startswith("this run is training already")
    assert "what it prints" in again.stdout
    assert calls.read_text() == "started\n"
    (worker.folder / "later").rename(worker.folder / "status")  # it ends: the next call starts anew
    assert worker(*run).returncode < 0
    assert calls.read_text() == "started\nremoved\nstarted\n"


def test_the_status_is_that_of_the_container(worker):
    docker = worker.folder / "bin/docker"
    docker.write_text(docker.read_text().replace("run) ", "run) echo 75 > status; "))
    result = worker("--workdir=/mnt/skin_jax/a")
    assert (result.returncode, result.stdout) == (75, "what it prints\n")


def test_stop_asks_every_worker_to_save_and_end():
    words = command("stop")
    assert words[:3] == ["ssh", "slice", "--worker=all"]
    assert "--command=sudo docker stop skin_jax" in words


def test_a_run_that_fails_says_how_it_is_followed(tmp_path):
    gcloud = tmp_path / "gcloud"
    gcloud.write_text("#!/bin/sh\nexit 255\n")
    gcloud.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    result = call("run", "--workdir=/mnt/skin_jax/x", dry_run=False, PATH=path)
    assert result.returncode == 255
    assert "the same command follows it again" in result.stderr


def test_fetch_copies_from_one_worker():
    assert command("fetch", "/mnt/skin_jax/runs/x", "here")[:5] == [
        "scp",
        "--recurse",
        "--worker=0",
        "slice:/mnt/skin_jax/runs/x",
        "here",
    ]


@pytest.mark.parametrize(
    ("args", "settings", "words"),
    [
        ([], {}, "create|run|stop|fetch|delete"),
        (["start"], {}, "create|run|stop|fetch|delete"),
        (["create"], {"ZONE": ""}, "set ZONE"),
        (["run", "--workdir=/mnt/skin_jax/x"], {"STORE": ""}, "set STORE"),
        (["run", "--workdir=runs/x"], {}, "give --workdir=/mnt/skin_jax/"),
        (["fetch", "/mnt/skin_jax/runs/x"], {}, "fetch takes"),
    ],
)
def test_what_is_missing_is_said_before_anything_runs(args, settings, words):
    result = call(*args, dry_run=False, **settings)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert words in result.stderr


def test_without_dry_run_gcloud_is_called(tmp_path):
    gcloud = tmp_path / "gcloud"
    gcloud.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit 5\n')
    gcloud.chmod(0o755)
    result = call("delete", dry_run=False, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert result.returncode == 5
    assert ["gcloud", *result.stdout.splitlines()][4:] == command("delete")
