"""The results of an audit for people and programs: JSON, Markdown and the closest pairs."""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from skin_jax.base.files import write_atomically
from skin_jax.data.classes import CLASSES
from skin_jax.eval import audit, inference, quality
from skin_jax.eval.metrics import plain
from skin_jax.report import figures, kit

JSON_FILE = "quality.json"
REPORT_FILE = "quality.md"
PICTURE_FILE = "closest_pairs.png"

_FEW_FOR_PERCENTILE = 100
_SHARES = ("precision", "recall", "density", "coverage")
_TITLE = "Quality of generated images"


def write(
    folder: Path,
    found: audit.Audit,
    real: audit.Real,
    generated: audit.Generated,
    names: Mapping[str, str],
) -> str:
    """Writes quality.json, quality.md and, where there are features, closest_pairs.png.

    Args:
      names: what was compared, such as the run and the folder; stands in both files as given.

    Returns:
      The tables and the notes as Markdown, for a terminal.

    Raises:
      UserError: the folder cannot be written.
    """
    notes = _notes(found, real, generated)
    content = {
        **names,
        "train_images": len(real.images),
        "generated_images": len(generated.images),
        "image_size": real.images.shape[1],
        "same_training_split": _own(real, generated),
        "features": found.features,
        "draws": audit.DRAWS,
        "neighbours": quality.NEIGHBOURS,
        "groups": {group.name: _group_json(group) for group in found.groups},
        "copies": _copies_json(found.copies, real, generated),
        "notes": notes,
    }
    write_atomically(folder / JSON_FILE, json.dumps(content, indent=2, allow_nan=False) + "\n")
    sections = [
        kit.Section("Generated against real images", _quality_tables(found)),
        kit.Section("Half of the real images against the other half", _halves_tables(found)),
    ]
    if found.copies is not None:
        sections.append(
            kit.Section("Nearest training images", [_copies_table(found.copies, real, generated)])
        )
    sections.append(kit.Section("Notes", [kit.Text(note) for note in notes]))
    printed = kit.markdown(_TITLE, sections, folder)
    picture = folder / PICTURE_FILE
    if found.copies is None:
        picture.unlink(missing_ok=True)  # of an earlier call
    else:
        sections.append(_pairs_section(picture, found.copies, real, generated))
    facts = kit.Table(("what", "which"), list(names.items()), prose=True)
    sections.append(kit.Section("What was compared", [facts]))
    write_atomically(folder / REPORT_FILE, kit.markdown(_TITLE, sections, folder))
    return printed


def _own(real: audit.Real, generated: audit.Generated) -> bool:
    """Whether the generators were fitted on these very training images."""
    return generated.train_splits == {real.train_split}


def _spread_json(spread: audit.Spread) -> dict[str, float | None]:
    return {"mean": plain(spread.mean), "sd": plain(spread.sd)}


def _group_json(group: audit.Group) -> dict[str, Any]:
    return {
        "train_images": group.train,
        "generated_images": group.generated,
        "half": group.half,
        "compared": group.compared,
        **{
            key: {measure: _spread_json(spread) for measure, spread in values.items()}
            for key, values in (
                ("generated", group.values),
                ("floor", group.floor),
                ("halves", group.halves),
                ("shuffled", {"kid": group.shuffled_kid}),
            )
        },
    }


def _copies_json(
    copies: audit.Copies | None, real: audit.Real, generated: audit.Generated
) -> dict[str, Any] | None:
    if copies is None:
        return None
    return {
        "distance": "cosine, the smallest over the training images and the 8 orientations",
        "val_images": len(real.val_images),
        "threshold": plain(copies.threshold),
        "groups": {
            name: {
                "share_under_threshold": plain(copies.share(theirs)),
                "median_distance": plain(_median(copies.distances[theirs])),
                "val_median_distance": plain(_median(copies.val_distances[val])),
            }
            for name, theirs, val in _members(real, generated)
        },
        "closest": [
            {
                "image": generated.names[pair.generated],
                "nearest": real.ids[pair.train],
                "nearest_label": CLASSES[real.labels[pair.train]],
                "distance": pair.distance,
            }
            for pair in copies.closest
        ],
    }


def _members(
    real: audit.Real, generated: audit.Generated
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Each group's name, which generated images are in it, bool [M], and which val images."""
    return [
        *((name, generated.labels == k, real.val_labels == k) for k, name in enumerate(CLASSES)),
        (
            audit.OVERALL,
            np.ones(len(generated.labels), bool),
            np.ones(len(real.val_labels), bool),
        ),
    ]


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else float("nan")


def _value(spread: audit.Spread, digits: int, factor: float = 1.0) -> str:
    if np.isnan(spread.mean):
        return kit.UNDEFINED
    return f"{factor * spread.mean:.{digits}f} ± {factor * spread.sd:.{digits}f}"


def _mean(spread: audit.Spread) -> str:
    return kit.UNDEFINED if np.isnan(spread.mean) else f"{spread.mean:.2f}"


def _table(
    found: audit.Audit, header: Sequence[str], row: Callable[[audit.Group], Sequence[str]]
) -> kit.Table:
    return kit.Table(("class", *header), [(group.name, *row(group)) for group in found.groups])


def _beside(group: audit.Group, key: str, digits: int, factor: float = 1.0) -> tuple[str, str]:
    """A value and its floor."""
    floor = _value(group.floor[key], digits, factor)
    return _value(group.values[key], digits, factor), floor


def _quality_tables(found: audit.Audit) -> list[kit.Table]:
    """No wider than 80 columns each; without what needs features where there are none."""
    if found.features is None:
        return [
            _table(
                found,
                ("train", "generated", "n", "SWD x1000", "floor"),
                lambda group: (*_counts(group), *_beside(group, "swd", 1, 1000)),
            )
        ]
    return [
        _table(
            found,
            ("train", "gen.", "n", "KID", "floor", "shuffled"),
            lambda group: (
                *_counts(group),
                *_beside(group, "kid", 3),
                _value(group.shuffled_kid, 3),
            ),
        ),
        _table(
            found,
            ("FID", "floor", "SWD x1000", "floor"),
            lambda group: (*_beside(group, "fid", 1), *_beside(group, "swd", 1, 1000)),
        ),
        _table(
            found,
            _SHARES,
            lambda group: [f"{_mean(group.values[k])} ({_mean(group.floor[k])})" for k in _SHARES],
        ),
    ]


def _counts(group: audit.Group) -> tuple[str, str, str]:
    return str(group.train), str(group.generated), str(group.compared)


def _halves_tables(found: audit.Audit) -> list[kit.Table]:
    if found.features is None:
        return [
            _table(
                found,
                ("half", "SWD x1000"),
                lambda group: (str(group.half), _value(group.halves["swd"], 1, 1000)),
            )
        ]
    return [
        _table(
            found,
            ("half", "KID", "FID", "SWD x1000"),
            lambda group: (
                str(group.half),
                _value(group.halves["kid"], 4),
                _value(group.halves["fid"], 1),
                _value(group.halves["swd"], 1, 1000),
            ),
        ),
        _table(found, _SHARES, lambda group: [_mean(group.halves[key]) for key in _SHARES]),
    ]


def _copies_table(copies: audit.Copies, real: audit.Real, generated: audit.Generated) -> kit.Table:
    rows = []
    for name, theirs, val in _members(real, generated):
        share = copies.share(theirs)
        rows.append(
            (
                name,
                str(theirs.sum()),
                _distance(_median(copies.distances[theirs])),
                str(val.sum()),
                _distance(_median(copies.val_distances[val])),
                kit.UNDEFINED if np.isnan(share) else f"{share:.1%}",
            )
        )
    return kit.Table(
        ("class", "generated", "median", "val", "median", "under val's 1st percentile"), rows
    )


def _distance(value: float) -> str:
    return kit.UNDEFINED if np.isnan(value) else f"{value:.4f}"


def _pairs_section(
    path: Path, copies: audit.Copies, real: audit.Real, generated: audit.Generated
) -> kit.Section:
    titles = [
        f"{CLASSES[generated.labels[pair.generated]].upper()} | "
        f"{CLASSES[real.labels[pair.train]].upper()}  {pair.distance:.4f}"
        + (" *" if pair.distance < copies.threshold else "")
        for pair in copies.closest
    ]
    figures.closest_pairs(
        path,
        np.stack([_turned(generated.images[pair.generated], pair) for pair in copies.closest]),
        np.stack([real.images[pair.train] for pair in copies.closest]),
        titles,
    )
    names = ", ".join(
        f"{generated.names[pair.generated]} and {real.ids[pair.train]}" for pair in copies.closest
    )
    caption = (
        "The pairs that are nearest, generated (turned as it fits best) | training image, with "
        f"their distances (*: under the threshold); row by row: {names}."
    )
    return kit.Section("Closest pairs", [kit.Picture(path, caption)])


def _turned(image: np.ndarray, pair: audit.Pair) -> np.ndarray:
    views = inference.orientations(image[None])
    return next(islice(views, pair.orientation, None))[0]


def _notes(found: audit.Audit, real: audit.Real, generated: audit.Generated) -> list[str]:
    """What has to be known to read the tables, one paragraph each."""
    sides = [key[4:] for key in found.groups[0].halves if key.startswith("swd_")]
    notes = [
        f"Means over {audit.DRAWS} draws, ± their standard deviation. A draw compares a random "
        "half of the training images with n generated images and, for the floor, with n real "
        "images of the other half: what real images reach.",
        "SWD: sliced Wasserstein distance between patches, which needs no network; the mean over "
        f"{', '.join(sides)} pixels. At most {audit.PATCHED_IMAGES} images are compared with as "
        "many: the fewer, the larger it is.",
    ]
    if found.features is None:
        notes.append("Without the features of a network there is nothing but that distance.")
    else:
        halves = [group.half for group in found.groups]
        notes += [
            f"Features: {found.features}. All images were at {real.images.shape[1]} pixels before.",
            "KID comes first: its mean does not depend on the number of images. Shuffled pixels: "
            "real images of the other half, each with its pixels in random order.",
            "FID is larger the fewer images there are: compare it with its floor only. Below "
            f"{found.dimensions + 1:,} images its covariances are rank-deficient; these halves "
            f"have {min(halves)} to {max(halves)}.",
            "Precision, recall, density and coverage, in brackets those of the floor: "
            f"neighbourhoods to the {quality.NEIGHBOURS}th neighbour.",
        ]
    notes += _shortages(found)
    notes.append(
        "Overall compares all generated with all training images, whatever their classes: where "
        "the shares of the classes differ, the values say so."
    )
    if not _own(real, generated):
        notes.append(
            "The generated images are of a generator that was fitted on other images than this "
            "run's training split: copies of those others are not looked for."
        )
    if found.copies is not None:
        notes += _copies_notes(found.copies, real)
    return notes


def _shortages(found: audit.Audit) -> list[str]:
    groups = found.groups
    notes = []
    if few := [f"{g.name} ({g.train})" for g in groups if g.half < 2]:
        notes.append(
            f"Fewer than 4 training images, so no two halves to compare: {', '.join(few)}."
        )
    if few := [f"{g.name} ({g.generated})" for g in groups if g.half > 1 and g.generated < 2]:
        notes.append(f"Fewer than 2 generated images: {', '.join(few)}.")
    few = [
        g.name
        for g in groups
        if any(1 < size <= quality.NEIGHBOURS for size in (g.half, g.compared))
    ]
    if found.features is not None and few:
        notes.append(
            f"Neighbourhoods need more than {quality.NEIGHBOURS} images in a set: not so in "
            f"{', '.join(few)}."
        )
    if cut := [g.name for g in groups if g.train // 2 > g.half]:
        notes.append(
            f"Halves of more than {audit.LARGEST_HALF} images are cut to that, by chance: "
            f"{', '.join(cut)}."
        )
    return notes


def _copies_notes(copies: audit.Copies, real: audit.Real) -> list[str]:
    notes = [
        "Nearest training images: the cosine distance between features, the smallest over all "
        "training images and the eight orientations (quarter turns and mirrors) of the image."
    ]
    if np.isnan(copies.threshold):
        notes.append("There are no val images to say which distance is small.")
    else:
        notes.append(
            f"The 1st percentile of the {len(copies.val_distances)} val images' distances is "
            f"{copies.threshold:.4f}: of images that copy nothing, 1 % are under it."
        )
        if len(copies.val_distances) < _FEW_FOR_PERCENTILE:
            notes.append("With so few val images that percentile is little more than the smallest.")
    return notes
