"""What a classifier must beat: logistic regressions on colour and on pixels, on a run's own split.

python -m skin_jax.eval.baselines --workdir DIR

Class-balanced, standardised, C chosen on the validation split by balanced accuracy; printed with
the run's own figures, and written to DIR/eval/test/baselines.json.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skin_jax import config as config_lib
from skin_jax import entry
from skin_jax.data.lesions import NUM_CLASSES
from skin_jax.errors import UserError
from skin_jax.eval import metrics
from skin_jax.experiment import load_examples, read_split
from skin_jax.files import write_atomically

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run that was evaluated on test.")

_PIXELS = 32
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def mean_colour(images: np.ndarray) -> np.ndarray:
    """Mean red, green and blue of uint8 images [N, H, W, 3], float64 [N, 3]."""
    return images.mean(axis=(1, 2))


def pixels(images: np.ndarray) -> np.ndarray:
    """Images uint8 [N, H, W, 3] at 32x32, flattened, float32 [N, 3072]."""
    small = [
        Image.fromarray(i).resize((_PIXELS, _PIXELS), Image.Resampling.BILINEAR) for i in images
    ]
    return np.stack([np.asarray(i, np.float32) for i in small]).reshape(len(images), -1)


FEATURES = {"mean colour": mean_colour, "32x32 pixels": pixels}


def logistic_regression(
    features: np.ndarray, labels: np.ndarray, assignment: np.ndarray
) -> tuple[float, float]:
    """Balanced accuracy on test of a class-balanced logistic regression, and the C it chose.

    Args:
      features: float [N, F], standardised here with the training split's mean and deviation.
      labels: int [N].
      assignment: "train" | "val" | "test" [N].

    Raises:
      UserError: no validation images to choose C by, or one class only to learn.
    """
    rows = {split: assignment == split for split in ("train", "val", "test")}
    if not rows["val"].any() or len(np.unique(labels[rows["train"]])) < 2:
        raise UserError("the baselines need validation images, and training images of two classes")
    fits = []
    for strength in STRENGTHS:
        model = make_pipeline(
            StandardScaler(),
            LogisticRegression(C=strength, class_weight="balanced", max_iter=1000),
        )
        model.fit(features[rows["train"]], labels[rows["train"]])
        scores = []
        for split in ("val", "test"):
            probabilities = np.zeros((rows[split].sum(), NUM_CLASSES))
            probabilities[:, model.classes_] = model.predict_proba(features[rows[split]])
            scores.append(metrics.balanced_accuracy(probabilities, labels[rows[split]]))
        fits.append((scores[0], strength, scores[1]))
    _, strength, score = max(fits)
    return score, strength


def main(argv: list[str]) -> None:
    """The command line's work; see the module's docstring."""
    if not _WORKDIR.value:
        raise UserError("give --workdir=DIR, the folder of a run")
    workdir = Path(_WORKDIR.value)
    config = config_lib.read(workdir)
    folder = workdir / "eval" / "test"
    if not (folder / "metrics.json").exists():
        raise UserError(f"{folder} has no metrics.json: let the run finish first")
    own = json.loads((folder / "metrics.json").read_text())["balanced_accuracy"]
    examples = load_examples(config)
    assignment = read_split(examples, workdir)
    present = len(np.unique(examples.labels[assignment == "test"]))
    results = {}
    print(f"balanced accuracy on the same test split (chance: {1 / present:.3f})")
    print(f"  {'this run':<46}{own:.3f}")
    for name, features in FEATURES.items():
        print(f"  fitting on {name}; on pixels that takes minutes ...", end="\r", flush=True)
        score, strength = logistic_regression(
            features(examples.images), examples.labels, assignment
        )
        results[name] = {"balanced_accuracy": score, "C": strength}
        print(f"  {f'logistic regression on {name} (C={strength:g})':<46}{score:.3f}", flush=True)
    write_atomically(folder / "baselines.json", json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    entry.run(main)
