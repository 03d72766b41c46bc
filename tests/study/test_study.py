"""Studies: their plan, how their jobs are run among several processes, and one that is real."""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from skin_jax.base import errors, interrupts
from skin_jax.base.errors import UserError
from skin_jax.report import study as study_report
from skin_jax.study import jobs, outcomes
from skin_jax.study import plan as plan_lib
from skin_jax.study.plan import Job, Plan

ROOT = Path(__file__).parents[2]
STAND_IN = Path(__file__).with_name("stand_in_job.py")
PROOF = "report.html"
STUDIES = ("study_augmentation", "study_table2", "study_labels", "study_few_images")
LABEL_SHARES = {5: 0.05, 10: 0.1, 25: 0.25, 100: 1.0}


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def study(name: str = "study_augmentation", **changes) -> ConfigDict:
    config = plan_lib.load(f"configs/{name}.py")
    config.lock()
    config.update_from_flattened_dict({key.replace("__", "."): v for key, v in changes.items()})
    return config


class TestPlan:
    def test_the_arms_of_a_fold_share_its_gan(self, tmp_path):
        plan = plan_lib.make(plan_lib.load("configs/study_augmentation.py:ratios"), tmp_path)
        groups = Counter(job.group for job in plan.jobs.values())
        assert groups["steps/dcgan"] == groups["steps/balanced"] == groups["steps/plenty"] == 5
        assert groups["runs/conventional"] == groups["runs/ratio_0_25"] == 10
        for seed in (0, 1):
            job = plan.jobs[f"runs/dcgan/fold3_seed{seed}"]
            assert job.needs == ("steps/balanced/fold3",)
            assert f"--config.data.synthetic={tmp_path}/steps/balanced/fold3" in job.command
            assert f"--config.seed={seed}" in job.command
        generation = plan.jobs["steps/balanced/fold3"]
        assert generation.needs == ("steps/dcgan/fold3",)
        assert "--balance_to=1000" in generation.command
        assert [job.name for job in plan.with_needs(["runs/dcgan/fold3_seed0"])] == [
            "steps/dcgan/fold3",
            "steps/balanced/fold3",
            "runs/dcgan/fold3_seed0",
        ]

    def test_steps_that_no_arm_needs_are_no_jobs(self, tmp_path):
        config = study()
        config.unlock()
        del config.arms["dcgan"]
        config.confirmatory = config.isolating = None
        assert {job.group[:4] for job in plan_lib.make(config, tmp_path).jobs.values()} == {"runs"}

    @pytest.mark.parametrize("shards", [1, 2, 3, 5, 7, 64])
    def test_shards_partition_the_runs_evenly(self, tmp_path, shards):
        plan = plan_lib.make(study(), tmp_path)
        shares = [plan.share(i, shards) for i in range(shards)]
        assert sorted(itertools.chain(*shares)) == sorted(plan.runs)
        sizes = [len(share) for share in shares]
        assert max(sizes) - min(sizes) <= 1
        with_gan = [sum("dcgan" in name for name in share) for share in shares]
        assert max(with_gan) - min(with_gan) <= 1

    def test_one_flag_changes_both_ways_of_balancing(self, tmp_path):
        plan = plan_lib.make(study(balance_to=700), tmp_path)
        assert "--balance_to=700" in plan.jobs["steps/balanced/fold0"].command
        repeated = plan.jobs["runs/oversampled/fold0_seed0"]
        assert "--config.data.oversample_to=700" in repeated.command

    def test_what_is_more_particular_wins(self, tmp_path):
        changes = {
            "data__dir": "images",
            "data__image_size": 32,
            "every_arm__data__image_size": 48,
            "every_arm__optimizer__learning_rate": 0.5,
            "arms__original__overrides__data__image_size": 96,
        }
        plan = plan_lib.make(study(**changes), tmp_path)
        sizes = {
            name: next(flag for flag in plan.jobs[name].command if "image_size" in flag)[-2:]
            for name in ("steps/dcgan/fold0", "runs/original/fold0_seed0", plan.runs[1])
        }
        assert sizes == {
            "steps/dcgan/fold0": "32",
            "runs/original/fold0_seed0": "96",
            "runs/conventional/fold0_seed0": "48",
        }
        assert all(
            "--config.data.dir=images" in job.command
            for job in plan.jobs.values()
            if "skin_jax.main" in job.command
        )
        rate = "--config.optimizer.learning_rate=0.5"
        assert rate in plan.jobs["runs/original/fold0_seed0"].command
        assert rate not in plan.jobs["steps/dcgan/fold0"].command

    def test_arms_differ_in_what_they_say_alone(self, tmp_path):
        plan = plan_lib.make(study(), tmp_path)
        arms = plan.record["arms"]
        keys = {
            name: {
                phrase.partition(":")[0]
                for phrase in plan_lib.config_lib.differences(
                    *(
                        plan_lib.config_lib.flatten(arms[a]["settings"])
                        for a in ("conventional", name)
                    )
                )
            }
            for name in arms
        }
        assert keys == {
            "conventional": set(),
            "original": {f"config.augment.{k}" for k in ("crop", "flip", "rotate90", "rotation")},
            "sampling": {"config.data.sampling"},
            "weighted": {"config.loss.class_weights"},
            "oversampled": {"config.data.oversample_to"},
            "dcgan": {"config.needs"},
        }

    def test_every_claim_that_can_be_named_is_known_to_the_report(self):
        assert set(plan_lib.CLAIMS) == set(study_report.CLAIMS)

    @pytest.mark.parametrize("name", STUDIES)
    @pytest.mark.parametrize("variant", ["", "smoke"])
    def test_the_studies_at_hand_can_be_planned(self, tmp_path, name, variant):
        plan = plan_lib.make(plan_lib.load(f"configs/{name}.py:{variant}"), tmp_path)
        runs = [plan.jobs[run] for run in plan.runs]
        assert len({job.steps for job in runs}) == 1
        assert (len(runs) < 15) == (variant == "smoke")

    def test_all_networks_of_table_2_are_fed_alike(self, tmp_path):
        plan = plan_lib.make(plan_lib.load("configs/study_table2.py"), tmp_path)
        fed = {
            name: [arm["settings"][key] for key in ("data", "batch_size", "num_steps")]
            for name, arm in plan.record["arms"].items()
        }
        assert len(fed) == 6
        assert all(settings == fed["densenet121"] for settings in fed.values())

    def test_the_arms_of_few_labels_differ_in_what_they_do_without(self, tmp_path):
        plan = plan_lib.make(plan_lib.load("configs/study_labels.py"), tmp_path)
        arms = {name: arm["settings"] for name, arm in plan.record["arms"].items()}
        methods = ("supervised", "sgan", "self_training")
        levels = {name: (f"labels_{name}", share) for name, share in LABEL_SHARES.items()}
        named = {f"{arm}/{level}" for arm in methods for level, _ in levels.values()}
        assert arms.keys() == named - {"self_training/labels_100"}
        shared = ("data", "augment", "num_steps", "ema_decay", "eval_every_steps")
        for level, share in levels.values():
            own = {name: arms[at] for name in methods if (at := f"{name}/{level}") in arms}
            for name, settings in own.items():
                assert all(settings[key] == own["sgan"][key] for key in shared)
                assert settings["data"]["label_fraction"] == share
                assert settings["optimizer"].get("schedule", "constant") == "constant"
                halves = 1 if name == "supervised" or share == 1 else 2
                assert settings["batch_size"] == 16 * halves
        job = plan.jobs["runs/sgan/labels_5/fold3_seed1"]
        assert "--config.data.label_fraction=0.05" in job.command
        assert job.group == "runs/sgan/labels_5"

    def test_subsets_stand_in_the_place_of_folds(self, tmp_path):
        plan = plan_lib.make(study("study_few_images"), tmp_path)
        assert plan.record["part"] == "subset"
        run = plan.jobs["runs/filtered/subset11_seed0"]
        assert "--config.data.split_seed=11" in run.command
        assert "--config.data.split_counts=(30, 10)" in run.command
        assert not any("data.fold" in flag for flag in run.command)
        names = [job.name for job in plan.with_needs([run.name])]
        assert names == [
            "steps/gan/subset11",
            "runs/oversampled/subset11_seed0",
            "steps/chosen/subset11",
            run.name,
        ]
        chosen = plan.jobs["steps/chosen/subset11"]
        assert f"--filter={tmp_path}/runs/oversampled/subset11_seed0" in chosen.command

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"subsets": ()}, "subsets are drawn by config.data.split_counts: give both"),
            ({"data__split_counts": ()}, "subsets are drawn by config.data.split_counts: give"),
            ({"subsets": (1, 1)}, r"config\.subsets is \(1, 1\)"),
            ({"steps__chosen__filter": "generated"}, r"config\.steps\.chosen\.filter is 'gen"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
    )
    def test_subsets_that_do_not_fit_are_refused(self, tmp_path, changes, words):
        with pytest.raises(UserError, match=words):
            plan_lib.make(study("study_few_images", **changes), tmp_path)

    def test_a_study_that_selects_looks_at_validation_images_alone(self, tmp_path):
        runs = plan_lib.make(study(select="val"), tmp_path)
        job = runs.jobs["runs/original/fold0_seed0"]
        assert "--config.final_split=val" in job.command
        assert job.proofs == ("report.html", "eval/val/predictions.csv")

    def test_the_report_says_where_the_control_begins(self, tmp_path):
        plan = plan_lib.make(plan_lib.load("configs/study_table2.py"), tmp_path)
        facts = outcomes.facts(tmp_path, plan.record)
        assert facts["densenet121: model.weights"] == "none"
        assert (facts["num_steps"], facts["images"]) == (2640, "of a data folder")

    def test_images_count_every_class_of_a_stack(self, tmp_path):
        plan = plan_lib.make(study(), tmp_path)
        assert plan.jobs["steps/dcgan/fold0"].images == 3500 * 32 * 7
        assert plan.jobs["runs/original/fold0_seed0"].images == 2000 * 64

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"folds": (0, 5)}, r"config\.folds is \(0, 5\)"),
            ({"folds": ()}, r"config\.folds is \(\)"),
            ({"seeds": (1, 1)}, r"config\.seeds is \(1, 1\)"),
            ({"control": "nothing"}, r"config\.control is 'nothing'; it can be 'original'"),
            ({"confirmatory": "conventional"}, r"config\.confirmatory is 'conventional'"),
            ({"isolating": "dcgan"}, r"config\.isolating is 'dcgan'; it can be 'original'"),
            ({"confirmatory": None}, r"config\.isolating names .* give both or neither"),
            (
                {"arms__dcgan__overrides__num_steps": 2001},
                r"equally many steps, but here .*conventional 2000.*dcgan 2001",
            ),
            ({"arms__dcgan__needs": "dcgan"}, r"config\.arms\.dcgan\.needs is 'dcgan'"),
            ({"steps__balanced__source": "balanced"}, r"config\.steps\.balanced\.source"),
            ({"arms__original__file": "configs/no.py"}, "there is no file configs/no.py"),
            (
                {"arms__original__file": "configs/sgan.py", "every_arm__model__dropout": 0.5},
                r"an override does not fit arm original \(configs/sgan\.py\): .*dropout",
            ),
            ({"every_arm__num_steps": 0}, r"arm original .*config\.num_steps is 0"),
            ({"arms__dcgan__overrides__data__oversample_to": 9}, "arm dcgan .*oversample_to"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
    )
    def test_what_does_not_fit_is_refused_by_name(self, tmp_path, changes, words):
        with pytest.raises(UserError, match=words):
            plan_lib.make(study(**changes), tmp_path)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"confirmatory_level": None}, "give both .*levels.* and .*level, or neither"),
            ({"confirmatory_level": "labels_7"}, r"confirmatory_level is 'labels_7'; it can be"),
            ({"arms__sgan__levels": ("labels_7",)}, r"config\.arms\.sgan\.levels is 'labels_7'"),
            ({"arms__sgan__levels": ("labels_5",)}, "arm sgan lacks the level labels_10, at which"),
            ({"arms__supervised__levels": ("labels_10",)}, "arm supervised lacks the level labels"),
            ({"levels__labels_5__overrides__batch_size": 0}, r"arm supervised/labels_5 .*batch_si"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
    )
    def test_levels_that_do_not_fit_are_refused_by_name(self, tmp_path, changes, words):
        with pytest.raises(UserError, match=words):
            plan_lib.make(study("study_labels", **changes), tmp_path)

    def test_generated_images_have_no_levels(self, tmp_path):
        config = study()
        config.unlock()
        config.levels.half = plan_lib.level(50, "half", {"data.label_fraction": 0.5})
        config.confirmatory_level = "half"
        with pytest.raises(UserError, match="arm dcgan takes generated images"):
            plan_lib.make(config, tmp_path)

    def test_steps_and_not_epochs_are_asked_for(self, tmp_path):
        config = study()
        config.unlock()
        del config.every_arm["num_steps"]
        with pytest.raises(UserError, match=r"--config\.every_arm\.num_steps=N"):
            plan_lib.make(config, tmp_path)


class TestRecord:
    def test_arms_folds_and_seeds_can_be_added_and_stay(self, tmp_path):
        plan_lib.register(plan_lib.make(study(folds=(1,), seeds=(0,)), tmp_path))
        more = plan_lib.load("configs/study_augmentation.py:ratios")
        more.folds, more.seeds = (0,), (3,)
        record = plan_lib.register(plan_lib.make(more, tmp_path))
        assert (record["folds"], record["seeds"]) == ([0, 1], [0, 3])
        again = plan_lib.register(plan_lib.make(study(folds=(1,), seeds=(0,)), tmp_path))
        assert again == record == plan_lib.recorded(tmp_path)
        assert len(again["arms"]) == 10

    def test_a_plan_of_an_earlier_version_is_read_and_a_damaged_one_is_not(self, tmp_path):
        plan_lib.register(plan_lib.make(study(), tmp_path))
        path = tmp_path / plan_lib.FILE_NAME
        content = json.loads(path.read_text())
        since = ("confirmatory_level", "axis", "select", "part", "levels")
        path.write_text(json.dumps({k: v for k, v in content.items() if k not in since}))
        assert plan_lib.recorded(tmp_path) == content
        for key in content.keys() - set(since):
            path.write_text(json.dumps({k: v for k, v in content.items() if k != key}))
            with pytest.raises(UserError, match="restore it from a copy"):
                plan_lib.recorded(tmp_path)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"every_arm__batch_size": 8}, r"conventional, config\.batch_size: 64 there, 8 now"),
            ({"every_arm__num_steps": 2001}, r"config\.num_steps: 2000 there, 2001 now"),
            ({"balance_to": 5}, r"balanced, config\.balance_to: 1000 there, 5 now"),
            ({"steps__dcgan__overrides__seed": 5}, r"dcgan, config\.seed: 0 there, 5 now"),
            ({"select": "val"}, r"config\.select: 'test' there, 'val' now"),
            ({"control": "original"}, r"config\.control: 'conventional' there, 'original' now"),
            ({"confirmatory": "sampling"}, r"config\.confirmatory: 'dcgan' there"),
            ({"data__demo_images": 80}, r"config\.data\.dir: 'images of a folder' there"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
    )
    def test_what_changes_a_result_is_refused(self, tmp_path, changes, words):
        plan_lib.register(plan_lib.make(study(), tmp_path))
        with pytest.raises(UserError, match=f"holds a study with other settings.*{words}"):
            plan_lib.register(plan_lib.make(study(**changes), tmp_path))

    def test_what_changes_no_result_may_change(self, tmp_path):
        plan_lib.register(plan_lib.make(study(data__dir="here"), tmp_path))
        changes = {
            "data__dir": "there",
            "checkpoint__every_steps": 9,
            "arms__dcgan__title": "x",
            "steps__balanced__max_tries": 10**6,
        }
        plan_lib.register(plan_lib.make(study(**changes), tmp_path))

    def test_a_folder_of_something_else_is_refused(self, tmp_path):
        (tmp_path / "config.json").touch()
        with pytest.raises(
            UserError, match=r"other files, such as config\.json, and no plan\.json"
        ):
            plan_lib.register(plan_lib.make(study(), tmp_path))

    def test_a_damaged_record_is_named(self, tmp_path):
        (tmp_path / "plan.json").write_text('{"arms": {}}')
        with pytest.raises(UserError, match=r"plan\.json is damaged"):
            plan_lib.check(plan_lib.make(study(), tmp_path))


def stand_in_plan(
    workdir: Path, control: Path, *, arms: int = 2, folds: int = 2, seeds: int = 1, steps: int = 0
) -> Plan:
    """Arms that need nothing and, last, one that needs a step of its fold."""

    def job(name: str, *needs: str) -> Job:
        folder = workdir / name
        command = (sys.executable, "-S", STAND_IN, control, name, folder, PROOF)
        return Job(name, needs, folder, tuple(map(str, command)), (PROOF,), steps)

    all_jobs = [job(f"steps/gan/fold{f}") for f in range(folds)]
    runs = []
    for s, f, a in itertools.product(range(seeds), range(folds), range(arms)):
        needs = (f"steps/gan/fold{f}",) if a == arms - 1 else ()
        runs.append(job(plan_lib.run_name(f"arm{a}", f"fold{f}", s), *needs))
    named = {job.name: job for job in (*all_jobs, *runs)}
    return Plan(workdir, {}, "0", named, tuple(job.name for job in runs))


RUNNER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from skin_jax.base import command
from skin_jax.study.jobs import Runner
from test_study import stand_in_plan
def main(argv):
    plan = stand_in_plan(Path(argv[1]), Path(argv[2]), **eval(argv[5]))
    result = Runner(plan, plan.share(int(argv[3]), int(argv[4]))).run()
    print(result.failed, result.skipped)
    return 3 if result.failed else 0
command.run(main)
"""


class Studies:
    """A work folder and its stand-in jobs; processes that run them are gone at the end."""

    def __init__(self, folder: Path):
        self.control = folder / "control"
        self.control.mkdir()
        self.workdir = folder / "study"
        self.plan = stand_in_plan(self.workdir, self.control)
        self._processes: list[subprocess.Popen] = []

    def run(self) -> jobs.Result:
        return jobs.Runner(self.plan, self.plan.runs).run()

    def start(self, shard: int = 0, shards: int = 1, **size: int) -> subprocess.Popen:
        script = RUNNER.format(tests=str(Path(__file__).parent))
        args = [self.workdir, self.control, shard, shards, size]
        process = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, args)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._processes.append(process)
        return process

    def hold(self, held: bool) -> None:
        if held:
            (self.control / "hold").touch()
        else:
            (self.control / "hold").unlink()

    def ran(self) -> list[str]:
        path = self.control / "ran"
        return path.read_text().split() if path.exists() else []

    def until_ran(self, count: int) -> None:
        deadline = time.monotonic() + 60
        while len(self.ran()) < count:
            assert time.monotonic() < deadline, "it does not start"
            time.sleep(0.02)

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def studies(tmp_path):
    with contextlib.closing(Studies(tmp_path)) as found:
        yield found


ALL = [
    "runs/arm0/fold0_seed0",
    "steps/gan/fold0",
    "runs/arm1/fold0_seed0",
    "runs/arm0/fold1_seed0",
    "steps/gan/fold1",
    "runs/arm1/fold1_seed0",
]


class TestRunner:
    def test_every_job_runs_once_after_what_it_needs_and_never_again(self, studies, capsys):
        assert studies.run() == jobs.Result()
        assert studies.ran() == ALL
        assert "[6/6] runs/arm1/fold1_seed0: finished in 0m0" in capsys.readouterr().out
        assert studies.run() == jobs.Result()
        assert studies.ran() == ALL
        assert "4 of 4 runs are finished; jobs to do: 0" in capsys.readouterr().out

    def test_what_only_finished_jobs_need_is_not_made(self, studies):
        (studies.workdir / "runs/arm1/fold0_seed0").mkdir(parents=True)
        (studies.workdir / "runs/arm1/fold0_seed0" / PROOF).touch()
        studies.run()
        assert "steps/gan/fold0" not in studies.ran()

    def test_what_failed_is_told_and_tried_again_by_the_next_call(self, studies, capsys):
        (studies.control / "fail").write_text("steps/gan/fold0 runs/arm0/fold1_seed0")
        result = studies.run()
        assert result.failed == {
            "steps/gan/fold0": "status 1: no luck",
            "runs/arm0/fold1_seed0": "status 1: no luck",
        }
        assert result.skipped == {"runs/arm1/fold0_seed0": "it needs steps/gan/fold0"}
        assert "[2/6] steps/gan/fold0: FAILED after 0m0" in capsys.readouterr().out
        (studies.control / "fail").unlink()
        assert studies.run() == jobs.Result()
        assert Counter(studies.ran()) == Counter(ALL) + Counter(result.failed.keys())

    def test_a_job_that_ends_well_and_leaves_nothing_has_failed(self, studies):
        (studies.control / "idle").touch()
        result = studies.run()
        assert set(result.failed.values()) == {f"it ended, but left no {PROOF}"}
        assert len(result.skipped) == 2

    def test_two_processes_never_run_a_job_twice(self, studies):
        studies.hold(True)
        pair = [studies.start(), studies.start()]
        studies.until_ran(2)
        studies.hold(False)
        outputs = [process.communicate(timeout=60) for process in pair]
        assert [process.returncode for process in pair] == [0, 0], outputs
        assert sorted(studies.ran()) == sorted(ALL)

    def test_shards_wait_for_a_step_that_another_one_makes(self, studies):
        studies.hold(True)
        size = {"arms": 1, "folds": 1, "seeds": 2}
        first = studies.start(0, 2, **size)
        studies.until_ran(1)
        second = studies.start(1, 2, **size)
        assert "0 of 1 runs are finished; jobs to do: 2" in second.stdout.readline()
        assert "waiting for steps/gan/fold0" in second.stdout.readline()
        studies.hold(False)
        outputs = [process.communicate(timeout=60) for process in (first, second)]
        assert (first.returncode, second.returncode) == (0, 0), outputs
        runs = ["runs/arm0/fold0_seed0", "runs/arm0/fold0_seed1"]
        assert sorted(studies.ran()) == [*runs, "steps/gan/fold0"]

    def test_a_failure_in_another_process_counts_for_this_one(self, studies):
        (studies.control / "fail").write_text(" ".join(ALL))
        studies.hold(True)
        pair = [studies.start(), studies.start()]
        studies.until_ran(2)
        studies.hold(False)
        for process in pair:
            out, err = process.communicate(timeout=60)
            assert process.returncode == errors.PARTIAL, err
            assert "no luck" in out
        assert max(Counter(studies.ran()).values()) == 1

    @pytest.mark.parametrize(
        ("signum", "status"),
        [(signal.SIGTERM, errors.PREEMPTED), (signal.SIGINT, errors.INTERRUPTED)],
    )
    def test_signals_reach_the_job_and_the_next_call_goes_on(self, studies, signum, status):
        studies.hold(True)
        process = studies.start()
        studies.until_ran(1)
        process.send_signal(signum)
        _, err = process.communicate(timeout=60)
        assert process.returncode == status
        assert f"asked to end: {ALL[0]} ended with status {status}" in err
        log = studies.workdir / "jobs" / ALL[0] / "log.txt"
        assert log.read_text().endswith("saved\n")
        studies.hold(False)
        assert studies.run() == jobs.Result()
        assert studies.ran() == [ALL[0], *ALL]

    def test_ctrl_c_waits_for_the_end_of_the_job_that_runs(self, studies, monkeypatch):
        unsaved, original = [], jobs.Runner._attempt

        def looking(*args):
            unsaved.append(interrupts.UNSAVED.is_set())
            return original(*args)

        monkeypatch.setattr(jobs.Runner, "_attempt", looking)
        studies.run()
        assert unsaved == [True] * len(ALL)
        assert not interrupts.UNSAVED.is_set()

    def test_kill_9_of_the_study_leaves_the_job_which_the_next_call_waits_for(self, studies):
        studies.hold(True)
        process = studies.start()
        studies.until_ran(1)
        process.kill()
        process.communicate()
        again = studies.start()
        studies.until_ran(2)  # it begins with what nobody is at
        studies.hold(False)
        _, err = again.communicate(timeout=60)
        assert again.returncode == 0, err
        assert sorted(studies.ran()) == sorted(ALL)

    @pytest.mark.parametrize("kills", [1, 2])
    def test_a_killed_job_goes_on_once_and_then_has_failed_alone(self, studies, kills):
        studies.hold(True)
        process = studies.start()
        for kill in range(kills):
            studies.until_ran(kill + 1)
            (child,) = children(process.pid)
            os.kill(child, signal.SIGKILL)
        studies.until_ran(2)
        studies.hold(False)
        out, err = process.communicate(timeout=60)
        assert process.returncode == (errors.PARTIAL if kills == 2 else 0), err
        assert (f"{{'{ALL[0]}': 'ended by SIGKILL'}}" in out) == (kills == 2)
        assert studies.ran() == [ALL[0], *ALL]
        assert studies.run() == jobs.Result()
        assert studies.ran() == [ALL[0], *ALL, *[ALL[0]] * (kills - 1)]

    def test_what_needs_a_result_that_was_deleted_is_left_out(self, studies, monkeypatch):
        lost = studies.workdir / ALL[1] / PROOF
        made = jobs.Runner._make

        def make_and_lose(self, job, lock):
            made(self, job, lock)
            if job.name == ALL[1]:
                lost.unlink()

        monkeypatch.setattr(jobs.Runner, "_make", make_and_lose)
        assert studies.run().skipped == {ALL[2]: f"{ALL[1]} was there and is gone"}
        monkeypatch.undo()
        assert studies.run() == jobs.Result()
        assert studies.ran()[-2:] == ALL[1:3]

    def test_kill_9_of_both_is_made_good(self, studies):
        studies.hold(True)
        process = studies.start()
        studies.until_ran(1)
        (child,) = children(process.pid)
        ended = os.pidfd_open(child)
        process.kill()
        os.kill(child, signal.SIGKILL)
        process.communicate()
        select.select([ended], [], [])  # nobody waits for it, and it holds its lock until then
        os.close(ended)
        studies.hold(False)
        assert studies.run() == jobs.Result()
        assert studies.ran() == [ALL[0], *ALL]


def children(pid: int) -> list[int]:
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=True
    )
    return [int(word) for word in found.stdout.split()]


class TestCosts:
    @pytest.fixture(autouse=True)
    def with_steps(self, studies):
        studies.plan = stand_in_plan(studies.workdir, studies.control, steps=10)

    @pytest.fixture
    def attempt(self, studies):
        def write(name: str, *rows: dict) -> None:
            folder = jobs.folder_of(studies.workdir, name)
            folder.mkdir(parents=True)
            (folder / "attempts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

        return write

    def test_nothing_measured_is_unknown(self, studies):
        left = jobs.Costs(studies.plan).left(list(studies.plan.jobs.values()))
        assert left == "an unknown time of steps/gan, runs/arm0, runs/arm1 (not measured yet)"

    def test_time_left_comes_from_attempts_that_got_somewhere(self, studies, attempt):
        attempt(
            ALL[0],
            {"event": "start", "time": 0, "units": 0, "code": "0"},
            {"event": "end", "time": 50, "units": 5},
            {"event": "start", "time": "noon"},  # odd lines end nothing
            {"event": "start", "time": 60, "units": 0},
            {"event": "end", "time": 99, "units": 5},
            {"event": "start", "time": 1000, "units": 5, "code": "0"},  # killed, without a step
            {"event": "start", "time": 2000, "units": 5, "code": "0"},
            {"event": "end", "time": 2070, "units": 10},
        )
        costs = jobs.Costs(studies.plan)
        assert costs.per_unit("runs/arm0") == 12
        mine = [job for job in studies.plan.jobs.values() if job.group != "runs/arm1"]
        assert costs.left([job for job in mine if job.group == "runs/arm0"]) == "4m00s"
        assert costs.left(mine) == "4m00s and an unknown time of steps/gan (not measured yet)"
        assert costs.left(mine, names=False) == "4m00s and an unknown time of other jobs"

    def test_a_running_job_is_measured_by_its_history(self, studies, attempt):
        job = studies.plan.jobs[ALL[0]]
        attempt(ALL[0], {"event": "start", "time": 1000, "units": 0, "code": "0"})
        job.folder.mkdir(parents=True)
        history = job.folder / "metrics.jsonl"
        history.write_text('{"event": "start", "step": 0}\n{"step": 4, "d_loss": 1}\n{"st')
        os.utime(history, (1020, 1020))
        costs = jobs.Costs(studies.plan)
        assert costs.per_unit(job.group) == 5
        assert costs.left([job]) == "0m30s"

    def test_what_was_timed_before_stands_in_for_what_was_not_measured(self, studies, attempt):
        attempt(
            ALL[0],
            {"event": "start", "time": 0, "units": 0, "code": "0"},
            {"event": "end", "time": 50, "units": 10},
        )
        timings = dict.fromkeys(("runs/arm0", "runs/arm1"), jobs.Timing(start=3.0, step=0.5))
        costs = jobs.Costs(studies.plan, timings)
        runs = [job for job in studies.plan.jobs.values() if job.group.startswith("runs")]
        # Two runs of ten steps by what the folder shows, and two by the timing.
        assert costs.left(runs) == "1m56s"
        assert costs.measured("runs/arm0", "s/step") == "5 s/step"
        assert costs.measured("runs/arm1", "s/step") == "about 0.5 s/step"
        assert costs.measured("steps/gan", "s/step") == "not yet"

    def test_a_few_steps_of_each_kind_of_training_are_timed(self, studies):
        def trains(name: str, code: str) -> Job:
            command = (sys.executable, "-c", code, "--workdir=W", "--config.data.synthetic=G")
            command += ("--config.data.synthetic_ratio=2.0",)
            folder = studies.workdir / name
            return Job(name, (), folder, command, (PROOF,), 100, images=800, warms_up=True)

        code = (
            "import pathlib, sys\n"
            "given = dict(word.split('=') for word in sys.argv[1:])\n"
            "assert not any('synthetic' in key for key in given)\n"
            "assert given['--config.optimizer.warmup_steps'] == '0'\n"
            "assert given['--config.log.every_steps'] == '10'  # its last rate has no compilation\n"
            "step = given['--config.num_steps']\n"
            "folder = pathlib.Path(given['--workdir'])\n"
            "folder.mkdir()\n"
            'row = \'{"step": %s, "images_per_second": 4.0}\' % step\n'
            "(folder / 'metrics.jsonl').write_text(row + '\\n')\n"
        )
        found = jobs.estimate(
            studies.plan,
            [
                trains("runs/new/fold0_seed0", code),
                trains("runs/new/fold1_seed0", "raise SystemExit('one of a group is enough')"),
                dataclasses.replace(trains("steps/drawn/fold0", ""), steps=0),
            ],
        )
        assert found == {"runs/new": jobs.Timing(start=0.0, step=2.0)}
        with pytest.raises(UserError, match="20 steps of runs/bad failed: no luck"):
            jobs.estimate(studies.plan, [trains("runs/bad/fold0", "raise SystemExit('no luck')")])

    def test_the_table_counts_what_is_done_and_begun(self, studies, attempt):
        attempt(ALL[0], {"event": "start", "time": 1000, "units": 0, "code": "0"})
        done = studies.plan.jobs["steps/gan/fold1"]
        done.folder.mkdir(parents=True)
        (done.folder / PROOF).touch()
        header, rows = jobs.table(
            studies.plan, list(studies.plan.jobs.values()), jobs.Costs(studies.plan)
        )
        cells = [dict(zip(header, row, strict=True)) for row in rows]
        assert [(c["jobs"], c["number"], c["done"], c["begun"]) for c in cells] == [
            ("steps/gan", "2", "1", "0"),
            ("runs/arm0", "2", "0", "1"),
            ("runs/arm1", "2", "0", "0"),
        ]
        assert cells[2]["needs"] == "steps/gan"
        assert {c["measured"] for c in cells} == {"not yet"}


def test_generated_images_are_finished_when_all_are_there(tmp_path):
    job = Job("steps/g/fold0", (), tmp_path, (), ("manifest.csv", "generation.json"))
    assert job.missing() == "no manifest.csv"
    (tmp_path / "manifest.csv").touch()
    content = {"settings": {"images": {"mel": 2, "df": 1}}, "rows": [[], []]}
    (tmp_path / "generation.json").write_text(json.dumps(content))
    assert job.missing() == "2 of 3 images"
    content["rows"].append([])
    (tmp_path / "generation.json").write_text(json.dumps(content))
    assert job.missing() == ""
    (tmp_path / "generation.json").write_text("{")
    assert job.missing() == "a damaged generation.json"
    assert dataclasses.replace(job, proofs=("manifest.csv",)).missing() == ""


def test_last_words_are_of_the_last_attempt_and_of_bars_of_progress(tmp_path):
    log = tmp_path / "log.txt"
    assert jobs.last_words(log) == ""
    log.write_text("$ first\nold words\n$ second\n")
    assert jobs.last_words(log) == ""
    with log.open("a", newline="") as file:
        file.write("step 1\n 10 %\r 20 %\r\n\n")
    assert jobs.last_words(log) == "20 %"


TINY = """
from skin_jax.study.plan import arm, generation, load, study, training


def get_config(variant=""):
    config = study(load("configs/classifier.py:smoke"))
    config.folds, config.seeds = (0, 1), (0,)
    config.control, config.confirmatory, config.claims = "conventional", "generated", ("B",)
    config.data.demo_images, config.data.image_size, config.data.pipeline = 80, 32, "device"
    config.log.tensorboard = False
    config.every_arm.batch_size, config.every_arm.num_steps = 8, 4
    config.every_arm.eval_every_steps, config.every_arm.optimizer.warmup_steps = 4, 1
    short = {"num_steps": 2, "batch_size": 4, "eval_every_steps": 2, "score.images": 8}
    rare = {"classes": ("df", "vasc"), "model.width": 4}
    config.steps.gan = training("configs/dcgan.py:smoke", short | rare)
    config.steps.balanced = generation("gan", balance_to=12)
    config.arms.conventional = arm("configs/classifier.py:smoke", "conventional augmentation")
    config.arms.generated = arm("configs/classifier.py:smoke", "DCGAN images", needs="balanced")
    return config
"""


def command_line(folder: Path, *flags: str) -> subprocess.CompletedProcess:
    (folder / "tiny.py").write_text(TINY)
    where = [f"--config={folder / 'tiny.py'}", f"--workdir={folder / 'study'}"]
    return subprocess.run(
        [sys.executable, "-m", "skin_jax.study", *where, *flags],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.parametrize("folds", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_a_real_study_from_its_plan_to_its_report(tmp_path, folds):
    chosen = f"--config.folds={tuple(range(folds))}"
    planned = command_line(tmp_path, chosen, "--dry_run")
    assert planned.returncode == 0, planned.stderr
    assert not (tmp_path / "study").exists()
    row = rf"\| runs/generated +\| steps/balanced +\| +{folds} \| +0 \|"
    assert re.search(row, planned.stdout)
    steps = rf"\| optimiser steps +\| {10 * folds} \({10 * folds} of jobs that are not finished\)"
    assert re.search(steps, planned.stdout)
    assert re.search(r"\| time left on one process +\| an unknown time of", planned.stdout)

    one = command_line(tmp_path, chosen, "--shard=1/2")
    assert one.returncode == 0, one.stderr
    assert "minus conventional" in one.stdout
    content = (tmp_path / "study/study.json").read_text()
    assert f"{folds} of {2 * folds} planned runs are missing" in content

    both = command_line(tmp_path, chosen)
    assert both.returncode == 0, both.stderr
    assert f"{folds} of {2 * folds} runs are finished" in both.stdout
    for name in ("study.json", "study.md", "report.html"):
        assert (tmp_path / "study" / name).stat().st_size > 1000
    markdown = (tmp_path / "study/study.md").read_text()
    assert "missing" not in markdown.partition("##")[2].partition("##")[0]
    assert str(tmp_path) not in (tmp_path / "study/report.html").read_text()
    manifest = (tmp_path / "study/steps/balanced/fold0/manifest.csv").read_text()
    events = (tmp_path / "study/runs/generated/fold0_seed0/metrics.jsonl").read_text()
    generated = json.loads(events.partition("\n")[0])["synthetic_examples"]
    assert generated == manifest.count("\n") - 1 > 0

    changed = command_line(tmp_path, chosen, "--config.every_arm.batch_size=4", "--report_only")
    assert changed.returncode == errors.BAD_INPUT
    assert "conventional, config.batch_size: 8 there, 4 now" in changed.stderr
    again = command_line(tmp_path, chosen, "--dry_run")
    assert re.search(r"\| time left on one process +\| 0m00s", again.stdout), again.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--shard=2/2"], "--shard is '2/2'; it takes i/n"),
        (["--shard=half"], "--shard is 'half'"),
        (["--estimate"], "--estimate goes with --dry_run"),
        (["more"], "unexpected argument 'more'"),
        (["--workdir="], "give both --config=study_NAME and --workdir=DIR"),
        (["--config.every_arm.lr=1"], "--config.every_arm.lr; did you mean"),
        (["--config=configs/sgan.py"], "one run, not a study: run it with skin_jax.main"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_wrong_calls_are_one_sentence_and_status_2(tmp_path, flags, words):
    result = command_line(tmp_path, *flags)
    assert result.returncode == errors.BAD_INPUT, result.stderr
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert not (tmp_path / "study").exists()
