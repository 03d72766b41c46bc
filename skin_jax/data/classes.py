"""The classes of a data set, as a value that travels with its examples; and the known sets of them.

Sources: Tschandl, Rosendahl and Kittler, "The HAM10000 dataset", Scientific Data 5, 180161 (2018);
the ground truth files of the ISIC challenges of 2018 (task 3), 2019 and 2020; Pacheco et al.,
"PAD-UFES-20", Data in Brief 32, 106221 (2020).
"""

import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from skin_jax.base import csvs, folder
from skin_jax.base.files import write_json

FILE_NAME = "classes.json"

MALIGNANT, BENIGN = "malignant", "benign"

UNLABELLED = -1
"""The label of an image whose class is not known, or hidden from a run."""

# Okabe and Ito, "Color Universal Design" (2008); black stands in for their yellow, too pale for a
# line on white.
_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#000000", "#D55E00", "#0072B2", "#CC79A7", "#7F7F7F")


@dataclass(frozen=True)
class Classes:
    """The classes of a data set, in the order of their labels 0 to n - 1.

    Attributes:
      names: ids, as folders of generated images and `splits.csv` have them; distinct.
      titles: what people call them.
      groups: of each class MALIGNANT, BENIGN, or "" where nobody said.
      focus: name of the class that operating points are about; None where there is none.
      columns: the class columns of prediction CSVs, in their order: spellings of the names.
    """

    names: tuple[str, ...]
    titles: tuple[str, ...]
    groups: tuple[str, ...]
    focus: str | None
    columns: tuple[str, ...]

    @classmethod
    def of(cls, names: Sequence[str]) -> "Classes":
        """Classes of which only the names are given; their order is kept.

        A name that a known data set has, in any case, brings its title and its group; the focus is
        malignant or melanoma where there is one.
        """
        told = [_KNOWN.get(name.casefold(), (name, "")) for name in names]
        focus = (name for word in _FOCUS for name in names if name.casefold() == word)
        return cls(
            names=tuple(names),
            titles=tuple(title for title, _ in told),
            groups=tuple(group for _, group in told),
            focus=next(focus, None),
            columns=tuple(names),
        )

    def __len__(self) -> int:
        """How many there are, n."""
        return len(self.names)

    def index(self, name: str) -> int:
        """The label of a class, by its name."""
        return self.names.index(name)

    def name_of(self, label: int) -> str:
        """The name of a label; "" of UNLABELLED."""
        return "" if label == UNLABELLED else self.names[label]

    def titled(self, label: int) -> str:
        """Such as "mel (melanoma)"; the name alone where the title says the same."""
        name, title = self.names[label], self.titles[label]
        return name if name == title else f"{name} ({title})"

    @cached_property
    def column_order(self) -> tuple[int, ...]:
        """The label of each column: `probabilities[:, column_order]` is in the order of a CSV."""
        by_name = {name.casefold(): label for label, name in enumerate(self.names)}
        return tuple(by_name[column.casefold()] for column in self.columns)

    @property
    def colours(self) -> tuple[str, ...]:
        """A colour for each class, #RRGGBB, which colour-blind readers tell apart up to eight."""
        return tuple(itertools.islice(itertools.cycle(_COLOURS), len(self)))

    @property
    def is_ham10000(self) -> bool:
        """Whether these are the seven classes of papers A and B, whose figures may stand beside."""
        return self.names == HAM10000.names


_Known = dict[str, tuple[str, str]]
"""Name -> title and group."""

_HAM10000: _Known = {
    "akiec": ("actinic keratosis / Bowen's disease", MALIGNANT),
    "bcc": ("basal cell carcinoma", MALIGNANT),
    "bkl": ("benign keratosis", BENIGN),
    "df": ("dermatofibroma", BENIGN),
    "mel": ("melanoma", MALIGNANT),
    "nv": ("melanocytic nevus", BENIGN),
    "vasc": ("vascular lesion", BENIGN),
}
_ISIC_2019: _Known = {
    "ak": ("actinic keratosis", ""),  # the challenge does not say what it takes them for
    **{name: _HAM10000[name] for name in ("bcc", "bkl", "df", "mel", "nv")},
    "scc": ("squamous cell carcinoma", MALIGNANT),
    "vasc": _HAM10000["vasc"],
}
_ISIC_2020: _Known = {BENIGN: (BENIGN, BENIGN), MALIGNANT: (MALIGNANT, MALIGNANT)}
_PAD_UFES_20: _Known = {
    "ack": ("actinic keratosis", BENIGN),
    "bcc": ("basal cell carcinoma", MALIGNANT),
    "mel": ("melanoma", MALIGNANT),
    "nev": ("nevus", BENIGN),
    "scc": ("squamous cell carcinoma", MALIGNANT),
    "sek": ("seborrheic keratosis", BENIGN),
}
_KNOWN = {
    **(_PAD_UFES_20 | _ISIC_2019 | _HAM10000 | _ISIC_2020),
    "melanoma": ("melanoma", MALIGNANT),
    "unk": ("none of the others", ""),
}


def _classes(known: _Known, focus: str, columns: str) -> Classes:
    titles, groups = zip(*known.values(), strict=True)
    return Classes(tuple(known), titles, groups, focus, tuple(columns.split()))


HAM10000 = _classes(_HAM10000, "mel", "MEL NV BCC AKIEC BKL DF VASC")
"""Classes of HAM10000 and of the ISIC 2018 challenge, task 3; the columns are the challenge's."""

ISIC_2019 = _classes(_ISIC_2019, "mel", "MEL NV BCC AK BKL DF VASC SCC")
"""Classes of the ISIC 2019 challenge, without its UNK: no training image is of that."""

ISIC_2020 = _classes(_ISIC_2020, MALIGNANT, f"{BENIGN} {MALIGNANT}")
"""Classes of the ISIC 2020 challenge (SIIM-ISIC), where malignant means melanoma."""

PAD_UFES_20 = _classes(_PAD_UFES_20, "mel", "ACK BCC MEL NEV SCC SEK")
"""Classes of PAD-UFES-20, whose authors call the groups skin cancer and skin disease."""

_FOCUS = ("malignant", "melanoma", "mel")
_RESERVED = ("grids", "image", "overall")
"""Names that files have beside those of the classes: folders, columns and rows of reports."""

HAM10000_COUNTS = dict(zip(HAM10000.names, (327, 514, 1099, 115, 1113, 6705, 142), strict=True))
"""Images of each class in the full training set (papers A and B)."""


def arranged(found: Iterable[str], allowed: Sequence[str], known: Classes | None) -> Classes:
    """The classes in the order of their labels: those allowed, else those found, by name.

    Whole numbers in names are in their order. `known` are the classes of the layout.
    """
    names = tuple(allowed) or tuple(sorted(set(found), key=_natural))
    if known and names == known.names:
        return known
    return HAM10000 if names == HAM10000.names else Classes.of(names)


def name_problems(names: Sequence[str]) -> list[str]:
    """Lists problems of names of classes, which become names of folders, files and columns."""
    problems = []
    folded: dict[str, str] = {}
    for name in names:
        key = unicodedata.normalize("NFC", name).casefold()
        if key in folded:
            problems.append(f"the classes {folded[key]!r} and {name!r} differ only in case")
        folded[key] = name
        unfit = name != name.strip() or name.startswith(".") or not name or csvs.is_odd(name)
        unfit |= len(name.encode(errors="replace")) > 100 or not {"/", "\\"}.isdisjoint(name)
        if unfit or key in _RESERVED:
            problems.append(
                f"{name!r} cannot be the name of a class: files and folders are named after it"
            )
    return [f"{problem}; give another name with data.rename" for problem in problems]


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts numbers in names by their value."""
    parts = re.split(r"(\d+)", name)
    keys = [(0, int(p), p) if p.isdecimal() else (1, 0, p.casefold()) for p in parts if p]
    return [*keys, (-1, 0, name)]


def write(classes: Classes, workdir: Path) -> None:
    """Writes `classes.json` into a work folder, whole or not at all."""
    write_json(workdir / FILE_NAME, asdict(classes))


def read(workdir: Path) -> Classes:
    """The classes of a run; HAM10000's in a work folder that is older than the choice."""

    def parse(content: dict[str, Any]) -> Classes:
        lists = {key: tuple(content[key]) for key in ("names", "titles", "groups", "columns")}
        found = Classes(**lists, focus=content["focus"])
        if len(set(map(len, lists.values()))) != 1 or {*found.column_order} != {*range(len(found))}:
            raise ValueError("its lists do not fit each other")
        return found

    try:
        return folder.read_record(workdir / FILE_NAME, parse, "restore it from a copy")
    except FileNotFoundError:
        return HAM10000
