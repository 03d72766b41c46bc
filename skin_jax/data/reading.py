"""How a data folder is to be read: settings of `config.data`, and flags of commands."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from absl import flags

from skin_jax.base.errors import UserError
from skin_jax.base.files import expanded

flags.disclaim_key_flags()  # those of `define_flags` belong to the command that asks for them


@dataclass(frozen=True)
class Reading:
    """Settings of the user on how to read a data folder; the defaults leave it to `layouts.read`.

    Attributes:
      table: CSV or TSV that labels the images of the folder; None: the layout is recognised.
      image_column, label_column, group_column, split_column: of the table; None: guessed from
        usual names, and said.
      classes: which classes to take, in the order of their labels; (): all of them.
      rename: (name there, name here) of classes; several may become one.
      on_missing_label: of a row of the table: "error", or "keep" its image without a label.
    """

    table: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    group_column: str | None = None
    split_column: str | None = None
    classes: tuple[str, ...] = ()
    rename: tuple[tuple[str, str], ...] = ()
    on_missing_label: str = "error"

    def __post_init__(self) -> None:
        """Makes tuples of lists, which is what JSON has; UserError for what fits no setting."""
        names, pairs = self.classes, self.rename
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise UserError(f"data.classes is {names!r}; it takes names such as ('mel','nv')")
        if len(set(names)) != len(names):
            raise UserError(f"data.classes names a class twice: {', '.join(names)}")
        if isinstance(pairs, str) or not all(
            isinstance(pair, list | tuple) and [type(name) for name in pair] == [str, str]
            for pair in pairs
        ):
            raise UserError(
                f"data.rename is {pairs!r}; it takes pairs such as (('melanoma','mel'),): the name "
                "in the data, then the new one"
            )
        renamed = [old for old, _ in pairs]
        if len(set(renamed)) != len(renamed):
            raise UserError(f"data.rename gives one name two new ones: {pairs!r}")
        if self.on_missing_label == "keep" and self.table is None:
            raise UserError("data.on_missing_label needs a table; give it with data.table")
        object.__setattr__(self, "classes", tuple(names))
        object.__setattr__(self, "rename", tuple((old, new) for old, new in pairs))
        for field in ("image_column", "label_column", "group_column", "split_column"):
            if getattr(self, field) is not None and self.table is None:
                raise UserError(f"data.{field} needs a table; give it with data.table")

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "Reading":
        """The reading that the section `data` of a configuration asks for."""
        given = {field.name: data.get(field.name) for field in fields(cls)}
        return cls(**{name: value for name, value in given.items() if value is not None})


def place(table: str, data_dir: str | None) -> str:
    """The path of a table to keep in a configuration: below the data folder relative to it.

    So the folder may move. Elsewhere it is absolute; one that is nowhere stays as it was given.
    """
    path = expanded(table)
    if not path.exists():
        return str(path)
    path = path.absolute()
    root = expanded(data_dir).absolute() if data_dir else None
    return path.relative_to(root).as_posix() if root and path.is_relative_to(root) else str(path)


def define_flags() -> None:
    """Adds the flags of a command that reads a data folder."""
    columns = {"image": "image names", "label": "classes", "group": "lesions or patients"}
    flags.DEFINE_string("table", None, "CSV or TSV that labels the images in --data_dir.")
    for kind, what in (columns | {"split": "train, val and test"}).items():
        flags.DEFINE_string(f"{kind}_column", None, f"Its column of {what}; guessed by default.")
    flags.DEFINE_list("classes", [], "The classes to take, in this order; all by default.")
    flags.DEFINE_list("rename", [], "OLD=NEW for classes to be renamed or put together.")


def from_flags() -> Reading:
    """The reading that the flags of `define_flags` ask for."""
    given = flags.FLAGS.flag_values_dict()
    pairs = [pair.partition("=") for pair in given["rename"]]
    if wrong := [old for old, equals, new in pairs if not (old and equals and new)]:
        raise UserError(f"--rename={wrong[0]}: give OLD=NEW, such as --rename=melanoma=mel")
    rename = tuple((old, new) for old, _, new in pairs)
    return Reading.of({**given, "rename": rename})
