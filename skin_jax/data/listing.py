"""From what a reader gathered to records: classes, units that no split parts, and what to say."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from skin_jax.base import csvs
from skin_jax.data import classes as classes_lib
from skin_jax.data.classes import UNLABELLED, Classes
from skin_jax.data.examples import Record, components
from skin_jax.data.findings import Findings, Image, is_litter, kind_of

_CONFIRMATIONS = {
    "histopathology": "histo",
    "serial imaging showing no change": "follow_up",
    "single image expert consensus": "consensus",
    "confocal microscopy with consensus dermoscopy": "confocal",
    "true": "histo",
    "false": "consensus",
}
"""The challenge's words for what HAM10000's `dx_type` abbreviates; PAD-UFES-20 says whether there
was a biopsy: where not, dermatologists agreed (its paper)."""
_AGE = re.compile(r"(?:[<>]=?|[≤≥])?\s*(\d+(?:\.\d*)?)\s*\+?")
_OLDEST = 130


@dataclass(frozen=True)
class Listing:
    """The contents of a data folder, before any image is opened."""

    root: Path
    layout: str
    """A key of `layouts.LAYOUTS`, or "table"."""
    records: tuple[Record, ...]
    """Sorted by image id; where there are problems, those that could be made."""
    problems: tuple[str, ...]
    """Everything that is wrong, each with its file, row, column or id."""
    classes: Classes
    unit: str
    """The content of `Record.lesion_id`: "lesion", "patient", "group" or "image"."""
    notes: tuple[str, ...] = ()
    """Notes on what was chosen and what was left out, one sentence each."""


def make(findings: Findings, layout: str, known: Classes | None) -> Listing:
    """Makes records of what was found, once everything is read; adds problems and notes.

    `known` are the classes of the layout; None where the data say what there is.
    """
    target, rename = findings.target, dict(findings.reading.rename)
    allowed = findings.reading.classes or (target.names if target else ())
    if known and not allowed:  # they are there even without images
        allowed = tuple(dict.fromkeys(rename.get(name, name) for name in known.names))
    named = _named(findings, known, allowed)
    found_names = [name for _, name in named if name]
    classes = target or classes_lib.arranged(found_names, allowed, known)
    if classes is not known and classes is not target:
        findings.problems += classes_lib.name_problems(classes.names)
    kept: dict[str, tuple[Image, str]] = {}
    for image, name in sorted(named, key=lambda pair: pair[0].image_id):
        image_id = image.image_id
        if image_id in kept:
            where, first = (findings.name(path) for path in (image.path, kept[image_id][0].path))
            findings.problems.append(f"{where}: duplicate image id {image_id}, also {first}")
        elif image_id != image_id.strip() or csvs.is_odd(image_id):
            findings.problems.append(
                f"{image_id!r}: the image's name has spaces at its ends, control characters, or "
                "bytes that are not UTF-8; rename it"
            )
        else:
            kept[image_id] = image, name
    found = [image for image, _ in kept.values()]
    units, unit = _units(found)
    records = tuple(
        _record(findings, image, classes.index(name) if name else UNLABELLED, own)
        for (image, name), own in zip(kept.values(), units, strict=True)
    )
    if alone := sum(image.lacks_groups for image in found):
        findings.notes.append(
            f"{alone} of {len(found)} images have no lesion, patient or group in their table: each "
            "of them is a group of its own"
        )
    if without := sum(not name for _, name in kept.values()):
        findings.notes.append(
            f"{without} of {len(found)} images have no label: they may be trained on without one, "
            "and nothing is evaluated on them"
        )
        if without == len(found):
            findings.problems.append("no image has a label; name their column: data.label_column")
    if known and not target and not findings.problems:
        present = {record.label for record in records}
        if empty := [name for i, name in enumerate(classes.names) if i not in present]:
            findings.notes.append(f"no images of the class {', '.join(empty)}")
    return Listing(
        findings.root,
        layout,
        records,
        tuple(dict.fromkeys(findings.problems)),
        classes,
        unit,
        (*findings.notes, *_left_out(findings)),
    )


def _named(
    findings: Findings, known: Classes | None, allowed: Sequence[str]
) -> list[tuple[Image, str]]:
    """The images that are taken, each with the name of its class; "" where it may have none."""
    keep = findings.reading.on_missing_label == "keep" and not findings.target
    wanted, rename = findings.reading.classes, dict(findings.reading.rename)
    spelled = {name.casefold(): name for name in known.names} if known else {}
    named, labels = [], set()
    unknown: dict[str, list[str]] = defaultdict(list)
    for image in findings.images:
        if (label := image.label) is None:
            continue
        if label not in rename:
            label = spelled.get(label.casefold(), label)
        name = rename.get(label, label)
        labels.add(label)
        if name in allowed or not (allowed or csvs.is_missing(name)):
            named.append((image, name))
        elif keep and csvs.is_missing(name):
            named.append((image, ""))
        elif wanted:
            findings.left_out["" if csvs.is_missing(name) else name] += 1
        else:
            unknown[name].append(image.where)
    for name, (first, *others) in unknown.items():
        which = "no class" if csvs.is_missing(name) else "unknown class"
        more = f" (and in {len(others)} more)" if others else ""
        among = f" (known: {', '.join(allowed)})" if allowed else ""
        findings.problems.append(
            f"{first}: {which} {name!r}{more}{among}; rename it with data.rename (--rename) or "
            "name the classes to take with data.classes (--classes)"
        )
    if lost := [old for old in rename if old not in labels]:
        found = ", ".join(sorted(labels)) or "none"
        findings.problems.append(f"data.rename: there is no class {lost[0]!r}; there are {found}")
    there = {name for _, name in named if name}
    if lost := [name for name in wanted if name not in there]:
        found = ", ".join(sorted(there | {*findings.left_out} - {""})) or "none"
        findings.problems.append(f"data.classes: no image is of {lost[0]!r}; there are {found}")
    return named


def _record(findings: Findings, image: Image, label: int, unit: str) -> Record:
    told = {kind: cell for kind, (cell, _) in image.described.items()}
    sex, confirmation = told.get("sex", "").casefold(), told.get("confirmation", "")
    age = math.nan
    if "age" in told:
        found = _AGE.fullmatch(told["age"])
        if found and float(found[1]) <= _OLDEST:
            age = float(found[1])
        else:
            where = image.described["age"][1]
            findings.problems.append(f"{where}: {told['age']!r} is not an age in years")
    return Record(
        image.image_id,
        label,
        lesion_id=unit,
        age=age,
        sex={"f": "female", "m": "male"}.get(sex, sex),
        localization=told.get("localization", ""),
        confirmation=_CONFIRMATIONS.get(confirmation.casefold(), confirmation),
        official_split=image.split,
        path=image.path,
    )


def _units(found: Sequence[Image]) -> tuple[list[str], str]:
    """The unit of each image that no split divides, and the word for it.

    Images that share a lesion, a patient or a group belong together, and so do those that share one
    with these. A unit has the id of its lesion or, where a patient or a group is known, of that.
    """
    nodes = [list(image.groups.items()) or [("lesion", image.image_id)] for image in found]
    part = components(nodes)
    ranks = {"patient": 0, "lesion": 2}  # the widest names the unit
    widest_last = sorted(part, key=lambda n: (ranks.get(n[0], 1), *n[::-1]), reverse=True)
    names = {part[node]: node for node in widest_last}
    uses = Counter(value for _, value in names.values())
    units = []
    for links in nodes:
        kind, value = names[part[links[0]]]
        units.append(value if uses[value] == 1 or kind == "lesion" else f"{kind} {value}")
    kinds = {kind for image in found for kind in image.groups}
    if kinds <= {"lesion"}:
        return units, "lesion" if kinds else "image"
    return units, "patient" if "patient" in kinds else "group"


def _left_out(findings: Findings) -> list[str]:
    """Notes on everything in the folder that is not read."""
    notes = []
    if findings.left_out:
        told = [f"{n} {f'of {c}' if c else 'without any'}" for c, n in findings.left_out.items()]
        notes.append(f"images of other classes are left out: {', '.join(told)}")
    read = {*findings.sizes, *findings.tables}
    looked_into = {findings.name(folder).partition("/")[0] for folder in findings.named}
    unread = {path: kind for path, kind in findings.unread.items() if path not in read}
    folders = []
    for path in sorted(findings.root.iterdir()):
        if not (is_litter(path.name) or path in read):
            if not path.is_dir():
                unread.setdefault(path, kind_of(path))
            elif path.name not in looked_into:
                folders.append(f"the folder {path.name}")
    kinds = [f"{kind} ({n})" for kind, n in sorted(Counter(unread.values()).items())]
    if kinds or folders:
        notes.append(f"not read: {', '.join([*kinds, *folders])}")
    return notes
