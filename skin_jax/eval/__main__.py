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
    if _PREDICTIONS.value or _TRUTH.value:
        if not (_PREDICTIONS.value and _TRUTH.value and _OUT.value):
            raise UserError("comparing CSVs needs all of --predictions, --truth and --out")
        _compare(Path(_PREDICTIONS.value), Path(_TRUTH.value), Path(_OUT.value))
    elif _WORKDIR.value:
        _evaluate_run(Path(_WORKDIR.value), _DATA_DIR.value, _OUT.value)
    else:
        raise UserError("give --workdir=DIR, or --predictions and --truth; see --help")


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


def _evaluate_run(workdir: Path, data_dir: str | None, out: str | None) -> None:
    from skin_jax import checkpoint, config
    from skin_jax.data import builder
    from skin_jax.eval import report, runs
    from skin_jax.experiment import open_experiment

    settings = config.read(workdir)
    experiment = open_experiment(settings, workdir)
    checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", read_only=True)
    if data_dir:
        if not out:
            raise UserError("give --out=DIR, where the results on --data_dir shall go")
        folder = Path(out)
        examples = builder.prepare(
            data_dir,
            image_size=settings.data.image_size,
            cache_dir=Path(settings.data.cache_dir).expanduser(),
            on_bad_image=settings.data.on_bad_image,
        )
        evaluation = runs.evaluate_examples(experiment, checkpoints, examples, folder)
    else:
        folder = workdir / "eval" / _SPLIT.value
        found = runs.evaluate_split(experiment, checkpoints, _SPLIT.value, workdir)
        if found is None:
            return
        evaluation = found
    print(report.table_one(evaluation.metrics, evaluation.shared_with_train))
    print(f"\nresults: {folder}", flush=True)


if __name__ == "__main__":
    entry.run(main)
