"""Any table that labels the images of a folder: which of its columns say what."""

import re
from collections.abc import Sequence
from pathlib import Path

from skin_jax.base.errors import UserError
from skin_jax.base.files import expanded
from skin_jax.data.findings import Columns, Findings

_USUAL = {
    "image": (
        *("image", "image_id", "image_name", "image_file", "image_path", "img", "img_id"),
        *("isic_id", "file", "file_name", "filename", "path"),
    ),
    "label": (
        *("label", "labels", "class", "class_name", "category", "target", "dx", "diagnosis"),
        *("diagnostic", "benign_malignant"),
    ),
    "split": ("split", "set", "subset", "partition"),
    "lesion": ("lesion_id",),
    "patient": ("patient", "patient_id", "subject", "subject_id"),
    "group": ("group_id", "case_id"),
    "age": ("age", "age_approx"),
    "sex": ("sex", "gender"),
    "localization": (
        *("localization", "region", "anatom_site_general", "anatom_site_general_challenge"),
    ),
    "confirmation": ("dx_type", "diagnosis_confirm_type"),
}
"""What tables usually call what they say, in lower case with _ for what parts words."""
_DESCRIBED = ("age", "sex", "localization", "confirmation")
_SIDES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def usual(kind: str, header: Sequence[str]) -> list[str]:
    """The columns of a header that have a usual name for "image", "label" and so on."""
    return [name for name in header if re.sub(r"[^a-z0-9]+", "_", name.casefold()) in _USUAL[kind]]


def side(text: str) -> str | None:
    """Which side of a split a folder or a cell names: "train", "val", "test", or none of them."""
    return _SIDES.get(text.casefold())


def read(findings: Findings) -> None:
    """Reads the table of `findings.reading` and adds the images that it names.

    The columns are those that the reading names, else those with usual names, which are noted.
    Several are separated by commas: one-hot classes, or groups of several kinds. A UserError where
    there is no such table, or two.
    """
    path, files = _placed(findings), findings.scan(findings.root)
    header, _ = findings.table(path)
    columns = _columns(findings, path, header) if header else None
    if columns is None:
        return
    rows = findings.rows(path, columns)
    for image_id, facts, file in findings.match(rows, files, path, complete=False):
        split = side(facts.split) if columns.split else "train"
        if split is None:
            findings.problems.append(
                f"{facts.where}, column {columns.split}: {facts.split!r} is not train, val or test"
            )
        findings.add(image_id, file, facts.label, split or "train", facts.where, facts)


def _placed(findings: Findings) -> Path:
    given = expanded(findings.reading.table or "")
    places = dict.fromkeys(p.absolute() for p in (given, findings.root / given) if p.is_file())
    if not places:
        raise UserError(
            f"there is no table {given}, neither in the current folder nor in {findings.root}"
        )
    if len(places) > 1:
        raise UserError(f"{' and '.join(map(str, places))} both exist; give the absolute path")
    return findings.root / given if (findings.root / given).is_file() else given.absolute()


def _columns(findings: Findings, path: Path, header: Sequence[str]) -> Columns | None:
    """The columns to read; None, which is reported, where there are not those that it needs."""
    reading, before = findings.reading, len(findings.problems)
    given = {
        kind: getattr(reading, f"{kind}_column") for kind in ("image", "label", "group", "split")
    }

    def chosen(kind: str) -> tuple[str, ...]:
        text = given.get(kind)
        if text is not None:
            names = (text,) if text in header else tuple(n.strip() for n in text.split(","))
            if lost := [name for name in names if name not in header]:
                findings.problems.append(
                    f"{findings.name(path)}: no column {lost[0]!r} (data.{kind}_column); there are "
                    f"{', '.join(header)}"
                )
            return names
        found = usual(kind, header)
        if len(found) > 1:
            findings.problems.append(
                f"{findings.name(path)}: the columns {' and '.join(found)} could both be that of "
                f"the {kind}; choose with data.{kind if kind in given else 'group'}_column"
            )
        return tuple(found)

    image, label, split = chosen("image"), chosen("label"), chosen("split")
    if given["group"] is None:
        groups = {kind: name for kind in ("lesion", "patient", "group") for name in chosen(kind)}
    else:
        groups = {}
        for name in chosen("group"):  # of two columns of a kind, the second is a kind of its own
            groups[name if _kind(name) in groups else _kind(name)] = name
    if not label:
        label = _one_hot(findings, path, {*image, *split, *groups.values()})
    for kind, names in (("image", image), ("label", label)):
        if not names:
            findings.problems.append(
                f"{findings.name(path)}: no column has a usual name for the {kind}; name it "
                f"with data.{kind}_column; there are {', '.join(header)}"
            )
    if len(findings.problems) > before:
        return None
    described = {k: found[0] for k in _DESCRIBED if len(found := usual(k, header)) == 1}
    told = [("image", image[0]), ("class", ", ".join(label)), *groups.items()]
    told += [("split (with data.split=official)", name) for name in split]
    pairs = "; ".join(f"{kind}: {name}" for kind, name in [*told, *described.items()])
    findings.notes.append(f"columns of {findings.name(path)}: {pairs}")
    return Columns(
        image[0],
        label=label[0] if len(label) == 1 else None,
        one_hot=label if len(label) > 1 else (),
        groups=groups,
        split=split[0] if split else None,
        described=described,
    )


def _kind(column: str) -> str:
    """The kind of a column of groups, as far as its name says; else its own name."""
    return next((kind for kind in ("lesion", "patient") if usual(kind, [column])), column)


def _one_hot(findings: Findings, path: Path, others: set[str]) -> tuple[str, ...]:
    """Columns of zeros and ones, one of which is 1 in every row; () where they are not so."""
    header, rows = findings.table(path)
    if (wanted := findings.reading.classes) and set(wanted) <= set(header):
        return wanted
    found = [
        name
        for name in header
        if name and name not in others and all(_is_flag(row.values[name]) for row in rows)
    ]
    whole = all(sum(float(row.values[name]) for name in found) == 1 for row in rows)
    return tuple(found) if len(found) > 1 and whole else ()


def _is_flag(cell: str) -> bool:
    return bool(re.fullmatch(r"[01](\.0*)?", cell))
