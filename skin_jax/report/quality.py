"""The results of an audit for people and programs: JSON, Markdown and the closest pairs."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skin_jax.base.files import write_atomically, write_json
from skin_jax.eval import audit, quality
from skin_jax.eval.audit import Audit
from skin_jax.report import figures, kit
from skin_jax.report.kit import number

_FEW_FOR_PERCENTILE = 100
_REAL_SHOWN, _GENERATED_SHOWN = 4, 8
_SHARES = ("precision", "recall", "density", "coverage")
_Column = tuple[str, Iterable[object]]
_TITLE = "Quality of generated images"


def write(folder: Path, audits: Sequence[Audit], names: Mapping[str, str]) -> str:
    """Writes quality.json, quality.md, side_by_side.png and the closest pairs by each judge.

    What was compared is named by `names`, such as the run and the folder, in both files as given.
    Returns the tables and the notes as Markdown, for a terminal.

    Args:
      folder: of the files.
      audits: N > 0 of the same images, by as many judges.
      names: of the images.

    Raises:
      UserError: the folder cannot be written.
    """
    first = audits[0]
    real, generated = first.real, first.generated
    content = {
        **names,
        "train_images": len(real.images),
        "generated_images": len(generated.images),
        "image_size": real.images.shape[1],
        "same_training_split": real.were_fitted_by(generated),
        "draws": audit.DRAWS,
        "neighbours": quality.NEIGHBOURS,
        **_judged_json(first),
        "other_judges": [_judged_json(other) for other in audits[1:]],
    }
    write_json(folder / "quality.json", content)
    for stale in folder.glob("closest_pairs*.png"):
        stale.unlink()
    printed, pictures = [], []
    for place, found in enumerate(audits, start=1):
        which = "" if len(audits) == 1 else f" (judge {place})"
        printed.append(kit.Section(f"Generated against real images{which}", _quality_tables(found)))
        halves = f"Half of the real images against the other half{which}"
        printed.append(kit.Section(halves, _halves_tables(found)))
        if found.copies is not None:
            near = kit.Section(f"Nearest training images{which}", [_nearness_table(found)])
            printed.append(near)
            name = "closest_pairs.png" if place == 1 else f"closest_pairs_{place}.png"
            pictures.append(_pairs_section(folder / name, found, which))
        printed.append(kit.Section(f"Notes{which}", [kit.Text(note) for note in _notes(found)]))
    sections = [*printed, _side_by_side(folder / "side_by_side.png", first), *pictures]
    sections.append(kit.Section("What was compared", [kit.facts(names, ("what", "which"))]))
    write_atomically(folder / "quality.md", kit.markdown(_TITLE, sections, folder))
    return kit.markdown(_TITLE, printed, folder)


def _judged_json(found: Audit) -> dict[str, Any]:
    """What one judge finds."""
    of_generated, of_real = found.accuracy
    return {
        "features": found.features,
        "classification_accuracy_score": {"generated": of_generated, "real": of_real},
        "groups": {
            g.name: {
                "train_images": g.train,
                "generated_images": g.generated,
                "half": g.half,
                "compared": g.compared,
                "generated": g.values,
                "floor": g.floor,
                "halves": g.halves,
                "shuffled": {"kid": g.shuffled_kid},
                "c2st": g.c2st._asdict(),
            }
            for g in found.groups
        },
        "copies": _copies_json(found) if found.copies else None,
        "notes": _notes(found),
    }


def _side_by_side(path: Path, found: Audit) -> kit.Section:
    """Real and generated images of each class that has both."""
    shown = {}
    for k, name in enumerate(found.real.classes.names):
        real = found.real.images[found.real.labels == k][:_REAL_SHOWN]
        generated = found.generated.images[found.generated.labels == k][:_GENERATED_SHOWN]
        if len(real) and len(generated):
            shown[name] = real, generated
    if not shown:
        return kit.Section("Side by side", [kit.Text("No class has both kinds of images.")])
    figures.real_and_generated_by_class(path, shown)
    caption = (
        "The first training images of each class, left of the bar, and the first generated ones."
    )
    return kit.Section("Side by side", [kit.Picture(path, caption)])


def _copies_json(found: Audit) -> dict[str, Any]:
    copies, real = found.copies, found.real
    assert copies
    return {
        "distance": "cosine, the smallest over the training images and the 8 orientations",
        "val_images": len(real.val_images),
        "threshold": copies.threshold,
        "groups": {
            group.name: {
                "share_under_threshold": group.nearness.share,
                "median_distance": group.nearness.median,
                "val_median_distance": group.nearness.val_median,
            }
            for group in found.groups
            if group.nearness
        },
        "closest": [
            {
                "image": found.generated.names[pair.generated],
                "nearest": real.ids[pair.train],
                "nearest_label": real.classes.name_of(real.labels[pair.train]),
                "distance": pair.distance,
            }
            for pair in copies.closest
        ],
    }


def _table(found: Audit, *columns: _Column) -> kit.Table:
    return kit.by_columns("class", [group.name for group in found.groups], *columns)


def _quality_tables(found: Audit) -> list[kit.Table]:
    """No wider than 80 columns each; without what needs features where there are none."""
    groups = found.groups

    def with_floor(key: str, header: str, digits: int, factor: float = 1) -> list[_Column]:
        both = {header: [g.values for g in groups], "floor": [g.floor for g in groups]}
        return [
            (name, [kit.spread(values[key], digits, factor=factor) for values in measured])
            for name, measured in both.items()
        ]

    counts: list[_Column] = [
        ("train", [group.train for group in groups]),
        ("gen." if found.features else "generated", [group.generated for group in groups]),
        ("n", [group.compared for group in groups]),
    ]
    swd = with_floor("swd", "SWD x1000", 1, 1000) if _measured(found, "swd") else []
    if not found.features:
        return [_table(found, *counts, *swd)]
    told = ("told apart (95%)", [_accuracy(group.c2st) for group in groups])
    shuffled = ("shuffled", [kit.spread(group.shuffled_kid, 3) for group in groups])
    shares = (
        (key, [f"{number(g.values[key].mean, 2)} ({number(g.floor[key].mean, 2)})" for g in groups])
        for key in _SHARES
    )
    return [
        _table(found, *counts, *with_floor("kid", "KID", 3), shuffled),
        _table(found, *with_floor("fid", "FID", 1), *swd),
        _table(found, *shares, told),
    ]


def _measured(found: Audit, key: str) -> bool:
    """Whether the judge measured it in any group."""
    return any(np.isfinite(group.halves[key].mean) for group in found.groups)


def _accuracy(told: audit.Accuracy) -> str:
    if np.isnan(told.value):
        return kit.UNDEFINED
    return f"{told.value:.2f} ({told.low:.2f}-{told.high:.2f})"


def _halves_tables(found: Audit) -> list[kit.Table]:
    halves = [group.halves for group in found.groups]
    half = ("half", [group.half for group in found.groups])
    swd: list[_Column] = []
    if _measured(found, "swd"):
        swd = [("SWD x1000", [kit.spread(values["swd"], 1, factor=1000) for values in halves])]
    if not found.features:
        return [_table(found, half, *swd)]
    kid = ("KID", [kit.spread(values["kid"], 4) for values in halves])
    fid = ("FID", [kit.spread(values["fid"], 1) for values in halves])
    shares = ((key, [number(values[key].mean, 2) for values in halves]) for key in _SHARES)
    return [_table(found, half, kid, fid, *swd), _table(found, *shares)]


def _nearness_table(found: Audit) -> kit.Table:
    near = [group.nearness for group in found.groups if group.nearness]
    shares = [kit.UNDEFINED if np.isnan(each.share) else f"{each.share:.1%}" for each in near]
    return _table(
        found,
        ("generated", [each.generated for each in near]),
        ("median", [number(each.median, 4) for each in near]),
        ("val", [each.val for each in near]),
        ("median", [number(each.val_median, 4) for each in near]),
        ("under val's 1st percentile", shares),
    )


def _pairs_section(path: Path, found: Audit, which: str) -> kit.Section:
    copies, real, generated = found.copies, found.real, found.generated
    assert copies
    names = real.classes.names
    pictures, titles, listed = [], [], []
    for i, j, distance, picture in copies.closest:
        pictures.append(figures.tiled(np.stack([picture, real.images[j]]), 2))
        classes = names[generated.labels[i]], real.classes.name_of(real.labels[j]) or "no label"
        under = " *" * (distance < copies.threshold)
        titles.append(f"{' | '.join(classes)}  {distance:.4f}{under}")
        listed.append(f"{generated.names[i]} and {real.ids[j]}")
    figures.titled_images(path, pictures, titles, columns=3)
    caption = (
        "The nearest pairs: generated image (in the orientation that fits best) | training image, "
        f"with their distances (*: under the threshold); row by row: {', '.join(listed)}."
    )
    return kit.Section(f"Closest pairs{which}", [kit.Picture(path, caption)])


def _notes(found: Audit) -> list[str]:
    """Notes that are needed to read the tables, one paragraph each."""
    sides = [key[4:] for key in found.groups[0].halves if key.startswith("swd_")]
    notes = [
        f"Means over {audit.DRAWS} draws, ± their standard deviation. A draw compares a random "
        "half of the training images with n generated images and, for the floor, with n real "
        "images of the other half: what real images reach.",
    ]
    if sides:
        notes.append(
            "SWD: sliced Wasserstein distance between patches, which needs no network; the mean "
            f"over {', '.join(sides)} pixels. At most {audit.PATCHED_IMAGES} images are compared "
            "with as many: the fewer, the larger it is."
        )
    if found.features is None:
        notes.append("Without a network's features only that distance can be measured.")
    else:
        halves = [group.half for group in found.groups]
        notes += [
            f"Features: {found.features}. All images were at "
            f"{found.real.images.shape[1]} pixels before.",
            "KID comes first: its mean does not depend on the number of images. Shuffled pixels: "
            "real images of the other half, each with its pixels in random order.",
            "FID is larger the fewer images there are: compare it with its floor only. Below "
            f"{found.dimensions + 1:,} images its covariances are rank-deficient; these halves "
            f"have {min(halves)} to {max(halves)}.",
            "Precision, recall, density and coverage, in brackets those of the floor: "
            f"neighbourhoods to the {quality.NEIGHBOURS}th neighbour.",
            "Told apart: how often a logistic regression on half of the features tells the other "
            "half of the generated images from training images; 0.50 if they are alike.",
        ]
        if found.note:
            notes.append(found.note)
        of_generated, of_real = found.accuracy
        if not np.isnan(of_generated):
            notes.append(
                "Classification accuracy score: fitted on the generated images, a logistic "
                f"regression has a balanced accuracy of {of_generated:.3f} on the "
                f"{len(found.real.val_images)} val images; fitted on the training images, "
                f"{of_real:.3f}."
            )
    notes += _shortages(found)
    notes.append(
        "Overall compares all generated with all training images, whatever their classes; where "
        "the shares of the classes differ, this shows in the values."
    )
    if not found.real.were_fitted_by(found.generated):
        notes.append(
            "The generator was trained on other images than this run's training split: copies of "
            "those other images are not searched for."
        )
    return notes if found.copies is None else notes + _copies_notes(found.copies)


def _shortages(found: Audit) -> list[str]:
    groups, few = found.groups, quality.NEIGHBOURS
    notes = {
        "Fewer than 4 training images, so no two halves to compare: ": [
            f"{g.name} ({g.train})" for g in groups if g.half < 2
        ],
        "Fewer than 2 generated images: ": [
            f"{g.name} ({g.generated})" for g in groups if g.half > 1 and g.generated < 2
        ],
        f"Neighbourhoods need more than {few} images in a set: not so in ": [
            g.name
            for g in groups
            if found.features and not {g.half, g.compared}.isdisjoint(range(2, few + 1))
        ],
        f"Halves of more than {audit.LARGEST_HALF} images are cut to that, at random: ": [
            g.name for g in groups if g.train // 2 > g.half
        ],
    }
    return [f"{what}{', '.join(which)}." for what, which in notes.items() if which]


def _copies_notes(copies: audit.Copies) -> list[str]:
    notes = [
        "Nearest training images: the cosine distance between features, the smallest over all "
        "training images and the eight orientations (quarter turns and mirrors) of the image."
    ]
    if np.isnan(copies.threshold):
        return [*notes, "There are no val images to say which distance is small."]
    notes.append(
        f"The 1st percentile of the {len(copies.val_distances)} val images' distances is "
        f"{copies.threshold:.4f}: of images that copy nothing, 1% are under it."
    )
    if len(copies.val_distances) < _FEW_FOR_PERCENTILE:
        notes.append("With so few val images that percentile is little more than the smallest.")
    return notes
