"""The classes of a data set, as a value that travels with its examples; and the known sets of them.

Sources: Tschandl, Rosendahl and Kittler, "The HAM10000 dataset", Scientific Data 5, 180161 (2018);
the ground truth files of the ISIC 2018 challenge, task 3.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from skin_jax.base.errors import UserError
from skin_jax.base.files import write_atomically

FILE_NAME = "classes.json"

MALIGNANT, BENIGN = "malignant", "benign"

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
        """Classes of which only the names are known; their order is kept."""
        names = tuple(names)
        return cls(names, titles=names, groups=("",) * len(names), focus=None, columns=names)

    def __len__(self) -> int:
        """How many there are, n."""
        return len(self.names)

    def index(self, name: str) -> int:
        """The label of a class, by its name."""
        return self.names.index(name)

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
        """A colour for each class, #RRGGBB; from the ninth class on they repeat.

        They stay apart for colour-blind readers; what is drawn differs in dashes or markers, too.
        """
        return tuple(_COLOURS[label % len(_COLOURS)] for label in range(len(self)))

    @property
    def is_ham10000(self) -> bool:
        """Whether these are the seven classes of papers A and B, whose figures may stand beside."""
        return self.names == HAM10000.names

    def to_json(self) -> dict[str, Any]:
        """Plain values, as `classes.json` and reports hold them."""
        return {
            "names": list(self.names),
            "titles": list(self.titles),
            "groups": list(self.groups),
            "focus": self.focus,
            "columns": list(self.columns),
        }


HAM10000 = Classes(
    names=("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"),
    titles=(
        "actinic keratosis / Bowen's disease",
        "basal cell carcinoma",
        "benign keratosis",
        "dermatofibroma",
        "melanoma",
        "melanocytic nevus",
        "vascular lesion",
    ),
    groups=(MALIGNANT, MALIGNANT, BENIGN, BENIGN, MALIGNANT, BENIGN, BENIGN),
    focus="mel",
    columns=("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"),
)
"""Of HAM10000 and of the ISIC 2018 challenge, task 3; the columns are the challenge's."""

# The seven classes under their former names: to go once everything takes a `Classes`.
CLASSES = HAM10000.names
NUM_CLASSES = len(CLASSES)
FULL_NAMES = dict(zip(CLASSES, HAM10000.titles, strict=True))
CHALLENGE_COLUMNS = HAM10000.columns
CHALLENGE_ORDER = HAM10000.column_order

HAM10000_COUNTS: dict[str, int] = {
    "akiec": 327,
    "bcc": 514,
    "bkl": 1099,
    "df": 115,
    "mel": 1113,
    "nv": 6705,
    "vasc": 142,
}
"""Images of each class in the full training set (papers A and B)."""


def write(classes: Classes, workdir: Path) -> None:
    """Writes `classes.json` into a work folder, whole or not at all."""
    write_atomically(workdir / FILE_NAME, json.dumps(classes.to_json(), indent=2) + "\n")


def read(workdir: Path) -> Classes:
    """The classes of a run; the seven of HAM10000 in a work folder from before there was a choice.

    Raises:
      UserError: `classes.json` is damaged.
    """
    path = workdir / FILE_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = Classes(
            names=tuple(content["names"]),
            titles=tuple(content["titles"]),
            groups=tuple(content["groups"]),
            focus=content["focus"],
            columns=tuple(content["columns"]),
        )
        lengths = {len(part) for part in (found.names, found.titles, found.groups, found.columns)}
        if len(lengths) != 1 or sorted(found.column_order) != list(range(len(found))):
            raise ValueError("its lists do not fit each other")
        return found
    except FileNotFoundError:
        return HAM10000
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); restore it from a copy") from None
