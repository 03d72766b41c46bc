"""Generators of several programs next to each other, by one judge that none of them was trained by.

python -m benchmarks.generators --workdir=RUN --images=FOLDER
python -m benchmarks.generators --workdir=RUN --weights=LITE2 NAME=FOLDER [NAME=FOLDER ...]
python -m benchmarks.generators --workdir=RUN --weights=LITE2 --halves=100

The first writes the training images of a run as PNGs, for programs that read folders. The second
compares folders of generated images: those of `skin_jax.generate`, which have classes, and folders
of PNGs, which have none. Of classes, as many images are taken as keep the proportions of the
training images, so that all are compared with the same real ones. The third tells two halves of
the training images apart, again and again, of each lesion one image (others of it would give away
the half): of the intervals of `linear.c2st` 95 in 100 should hold 0.5.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from benchmarks.tables import table
from skin_jax.base import devices
from skin_jax.base.errors import UserError
from skin_jax.data import generated as generated_lib
from skin_jax.eval import audit, linear, quality
from skin_jax.eval.features import efficientnet_lite
from skin_jax.training.run import reopen

_SEED = 0


def proportional(labels: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Indices of as many images as there are in the proportions of `shares` [n], which sum to 1."""
    there = np.bincount(labels, minlength=len(shares))
    total = (there[shares > 0] / shares[shares > 0]).min()
    rng = np.random.default_rng(_SEED)
    members = [np.flatnonzero(labels == label) for label in range(len(shares))]
    counts = np.floor(total * shares + 1e-9).astype(int)
    return np.concatenate(
        [rng.permutation(m)[:count] for m, count in zip(members, counts, strict=True)]
    )


def loaded(folder: Path, real: audit.Real) -> tuple[np.ndarray, np.ndarray | None]:
    """Images uint8 [M, S, S, 3] of the real ones' size, and their labels [M] if they have any."""
    size = real.images.shape[1]
    if (folder / generated_lib.MANIFEST).exists():
        found = audit.generated_images(folder, size, real.classes)
        return found.images, found.labels
    files = sorted(folder.glob("*.png"))
    if not files:
        raise UserError(f"{folder} holds no PNGs")
    pictures = [Image.open(file).convert("RGB").resize((size, size)) for file in files]
    return np.stack([np.asarray(picture) for picture in pictures]), None


class Reals(NamedTuple):
    """Features [N, D] and labels [N] of real images."""

    features: np.ndarray
    labels: np.ndarray


def row(
    name: str, found: np.ndarray, labels: np.ndarray | None, train: Reals, val: Reals
) -> dict[str, Any]:
    """The figures of one set, features [M, D] with labels [M] or without."""
    by_class: list[float] = []
    pooled = found
    if labels is not None:
        counts = np.bincount(train.labels)
        by_class = [
            quality.kid(val.features[val.labels == label], found[labels == label])
            for label in range(len(counts))
        ]
        pooled = found[proportional(labels, counts / counts.sum())]
    some = np.random.default_rng(_SEED).permutation(len(train.labels))[: len(pooled)]
    near = quality.prdc(train.features[some], pooled)
    return {
        "generator": name,
        "images": len(pooled),
        "kid_val": quality.kid(val.features, pooled),
        "mean_class_kid_val": float(np.mean(by_class)) if by_class else None,
        "precision": near.precision,
        "recall": near.recall,
        "coverage": near.coverage,
    }


def rows(
    workdir: Path, weights: str, named: Sequence[tuple[str, Path]]
) -> Iterator[dict[str, Any]]:
    """A row for each folder, and before them what half of the training images reach."""
    real = audit.real_images(reopen(workdir))
    judge = efficientnet_lite(weights, devices.make_mesh(None))
    train = Reals(judge(real.images), real.labels)
    val = Reals(judge(real.val_images), real.val_labels)
    halves = np.array_split(np.random.default_rng(_SEED).permutation(len(real.labels)), 2)
    first, second = (Reals(*(values[half] for values in train)) for half in halves)
    yield row("half of the training images", second.features, None, first, val)
    for name, folder in named:
        images, labels = loaded(folder, real)
        yield row(name, judge(images), labels, train, val)


def told_apart(workdir: Path, weights: str, draws: int) -> str:
    """How often the interval of `c2st` of two halves of real images holds 0.5."""
    experiment = reopen(workdir)
    records, train = experiment.examples.records, experiment.indices("train")
    one_each = list({records[place].lesion_id: place for place in train}.values())
    judge = efficientnet_lite(weights, devices.make_mesh(None))
    found = judge(experiment.examples.images[np.array(one_each)])
    accuracies = []
    for seed in range(draws):
        halves = np.array_split(np.random.default_rng(seed).permutation(len(found)), 2)
        accuracies.append(linear.c2st(found[halves[0]], found[halves[1]], seed))
    held = sum(accuracy.low <= 0.5 <= accuracy.high for accuracy in accuracies)
    mean = np.mean([accuracy.value for accuracy in accuracies])
    return (
        f"{held} of {draws} intervals hold 0.5, the mean accuracy is {mean:.3f} "
        f"({len(found)} lesions, one image of each)"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes training images, or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="of a run on the real images")
    parser.add_argument("--images", type=Path, help="a new folder for the training images")
    parser.add_argument("--weights", help="of an EfficientNet-Lite, the judge")
    parser.add_argument("--halves", type=int, help="how often to cut real images into two halves")
    parser.add_argument("folders", nargs="*", metavar="NAME=FOLDER")
    chosen = parser.parse_args(arguments)
    if chosen.images:
        chosen.images.mkdir(parents=True)
        real = audit.real_images(reopen(chosen.workdir))
        for name, image in zip(real.ids, real.images, strict=True):
            Image.fromarray(image).save(chosen.images / f"{name}.png")
        print(f"{len(real.images)} training images in {chosen.images}")
        return
    if chosen.halves:
        print(told_apart(chosen.workdir, chosen.weights, chosen.halves))
        return
    named = [(name, Path(folder)) for name, _, folder in (f.partition("=") for f in chosen.folders)]
    print(table(list(rows(chosen.workdir, chosen.weights, named))))


if __name__ == "__main__":
    main()
