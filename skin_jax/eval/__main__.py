"""Evaluates a run, on one of its splits or on another labelled folder, or any pair of CSVs.

python -m skin_jax.eval --workdir DIR --split val|test
python -m skin_jax.eval --workdir DIR --data_dir OTHER --out DIR2
python -m skin_jax.eval --predictions P.csv --truth T.csv --out DIR2
"""

from pathlib import Path

from absl import flags

from skin_jax import entry
from skin_jax.errors import UserError

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a trained run.")
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "val", "test"], "Split of the run.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Another labelled folder, all of its images.")
_PREDICTIONS = flags.DEFINE_string("predictions", None, "CSV with the challenge's columns.")
_TRUTH = flags.DEFINE_string("truth", None, "CSV with the challenge's columns, one-hot.")
_OUT = flags.DEFINE_string("out", None, "Where the results go.")


def main(argv: list[str]) -> None:
    """The command line's work; see the module's docstring."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; see --help")
    out = Path(_OUT.value) if _OUT.value else None
    if _PREDICTIONS.value or _TRUTH.value:
        if not (_PREDICTIONS.value and _TRUTH.value and out):
            raise UserError("comparing CSVs needs all of --predictions, --truth and --out")
        _compare(Path(_PREDICTIONS.value), Path(_TRUTH.value), out)
    elif not _WORKDIR.value:
        raise UserError("give --workdir=DIR, or --predictions and --truth; see --help")
    elif _DATA_DIR.value:
        if not out:
            raise UserError("give --out=DIR, where the results on --data_dir shall go")
        _evaluate_elsewhere(Path(_WORKDIR.value), Path(_DATA_DIR.value), out)
    else:
        workdir = Path(_WORKDIR.value)
        _evaluate_split(workdir, _SPLIT.value, out or workdir / "eval" / _SPLIT.value)


def _compare(predictions: Path, truth: Path, out: Path) -> None:
    from skin_jax.eval import metrics, report, tables

    scores, known = tables.join(predictions, truth)
    evaluation = report.Evaluation(
        metrics=metrics.evaluate(scores.probabilities, known.labels),
        image_ids=scores.image_ids,
        labels=known.labels,
        probabilities=scores.probabilities,
    )
    report.write_evaluation(out, evaluation)
    print(report.table_one(evaluation.metrics))
    print(f"\nresults: {out}")


def _evaluate_split(workdir: Path, split: str, out: Path) -> None:
    from skin_jax import checkpoint
    from skin_jax.eval import report, runs
    from skin_jax.experiment import reopen

    experiment = reopen(workdir)
    checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", read_only=True)
    found = runs.evaluate_split(experiment, checkpoints, split, out)
    if found is not None:
        print(report.table_one(found[0].metrics, found[0].shared_with_train))
        print(f"\nresults: {out}", flush=True)


def _evaluate_elsewhere(workdir: Path, data_dir: Path, out: Path) -> None:
    from skin_jax import checkpoint
    from skin_jax.data import builder, splits
    from skin_jax.data.examples import write_skipped
    from skin_jax.errors import warn
    from skin_jax.eval import report, runs
    from skin_jax.experiment import SPLITS_FILE, reopen_task

    task, config = reopen_task(workdir)
    examples = builder.prepare(
        data_dir,
        image_size=config.data.image_size,
        cache_dir=config.data.cache_dir,
        on_bad_image=config.data.on_bad_image,
    )
    if examples.skipped:
        write_skipped(out / "skipped.csv", examples.skipped)
        warn(f"{len(examples.skipped)} unreadable images are left out: {out}/skipped.csv")
    trained = {image_id for image_id, _ in splits.members(workdir / SPLITS_FILE, "train")}
    if known := sum(record.image_id in trained for record in examples.records):
        warn(f"{known} of the {len(examples.records)} images have the id of a training image")
    checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", read_only=True)
    evaluation = runs.evaluate_examples(task, checkpoints, examples, config.eval_batch_size, out)
    print(report.table_one(evaluation.metrics))
    print(f"\nresults: {out}", flush=True)


if __name__ == "__main__":
    entry.run(main)
