import json
import math
import threading

from skin_jax.training.history import HISTORY, History, Progress, read_history, read_starts, told
from skin_jax.training.trackers import Tracker


def rows(folder):
    return [json.loads(line) for line in (folder / HISTORY).read_text().splitlines()]


def test_history_has_a_start_line_and_plain_json(tmp_path):
    writer = History(tmp_path, Tracker())
    writer.start(3, processes=1)
    writer.scalars(4, {"loss": 0.5, "bad": math.nan})
    writer.close()
    assert rows(tmp_path) == [
        {"event": "start", "step": 3, "processes": 1},
        {"step": 4, "loss": 0.5, "bad": None},
    ]


def test_a_line_cut_by_a_kill_does_not_swallow_the_next(tmp_path):
    (tmp_path / HISTORY).write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    writer = History(tmp_path, Tracker())
    writer.start(1)
    writer.scalars(2, {"loss": 3.0})
    writer.close()
    assert (tmp_path / HISTORY).read_text().splitlines()[2] == '{"event": "start", "step": 1}'
    assert [row["loss"] for row in read_history(tmp_path / HISTORY)] == [1.0, 3.0]


def test_odd_lines_are_passed_over(tmp_path):
    odd = [
        "",
        "3",
        "null",
        "[]",
        "{}",
        '{"event": "start"}',
        '{"step": "2"}',
        "[" * 10**5,
        "\ud800",
    ]
    odd += ['{"step": 2, "loss": "low"}', '{"step": 2, "loss": {}}']
    lines = [
        "\n".join(odd),
        '{"step": 1, "loss": 1.0}',
        '{"event": "start", "step": 1, "jax": "1"}',
    ]
    (tmp_path / HISTORY).write_text("\n".join([*lines, *odd]), errors="surrogatepass")
    assert read_history(tmp_path / HISTORY) == [{"step": 1, "loss": 1.0}]
    assert [row["jax"] for row in read_starts(tmp_path / HISTORY)] == ["1"]


def test_the_progress_line_shows_rate_headline_time_left_and_undone_steps(capsys, monkeypatch):
    clock = iter([0.0, 10.0, 12.0])
    monkeypatch.setattr("skin_jax.training.history.time.perf_counter", lambda: next(clock))
    progress = Progress(0, 100, 50.0, 8, ("loss",))
    assert progress.report(10, {"loss": 1.0, "other": 2.0}) == 8.0
    assert progress.report(20, {"loss": 0.5, "nonfinite": 3.0}) == 40.0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "step 10/100  epoch 0.2  8 images/s  loss 1.000"
    assert second == (
        "step 20/100  epoch 0.4  40 images/s  loss 0.500  0m16s left  (3 steps undone: not finite)"
    )


def test_what_takes_long_is_told_again_and_again_and_what_is_quick_is_not(monkeypatch):
    lines, again = [], threading.Event()

    def say(line, flush):
        lines.append(line)
        if len(lines) == 2:
            again.set()

    monkeypatch.setattr("builtins.print", say)
    with told("compiling"):
        pass
    assert lines == []
    with told("compiling", after=0.01, every=0.01):
        assert again.wait(60)
    assert lines[:2] == ["compiling: 0m00s so far"] * 2


def test_history_leaves_out_what_a_restart_superseded(tmp_path):
    lines = [
        {"event": "start", "step": 0, "devices": 1},
        {"step": 10, "d_loss": 3.0},
        {"step": 20, "d_loss": 2.0},
        {"step": 20, "val_macro_auc": 0.7},
        {"step": 30, "d_loss": 99.0},
        {"event": "start", "step": 20, "devices": 2},
        {"step": 30, "d_loss": 1.0},
        {"step": 40, "d_loss": None},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert read_history(path) == [*lines[1:4], *lines[6:]]
    assert read_history(tmp_path / "none.jsonl") == []


def test_history_survives_lines_cut_off_by_a_kill(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 10, "d_loss": 3.0}\n{"step": 20, "d_loss": 2.0}\n{"step": 30, "d_l'
        '{"event": "start", "step": 10}\n{"step": 20, "d_loss": 1.0}\n{"step": 3'
    )
    assert read_history(path) == [
        {"step": 10, "d_loss": 3.0},
        {"step": 20, "d_loss": 1.0},
    ]
