"""Settings: each is declared once, and its checks, help and hints come from the declaration."""

import ast
import contextlib
import dataclasses
import difflib
import functools
import itertools
import math
import numbers
import operator
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from skin_jax.base import code
from skin_jax.base.errors import UserError
from skin_jax.base.files import CACHE_ROOT

STUDY = "study"
"""What a study's own settings are declared for: its configuration names no task."""

MAX_SEED = 2**32 - 1
"""JAX takes larger seeds modulo 2^32."""

_KINDS = {int: numbers.Integral, float: numbers.Real, tuple: tuple | list, object: Callable}
_NOUNS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    object: "a class or a function, which a configuration file may give it",
}
_ITEMS = {
    int: "whole numbers, such as (0,1)",
    float: "numbers, such as (0.5,0.5)",
    str: "texts, such as ('a','b')",
    tuple: "pairs, such as (('a','b'),)",
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A setting as it is declared.

    Attributes:
      default: its value; None where it may be left out.
      help: one line.
      kind: type of the value, or of a tuple's items; that of the default where not given.
      choices: the only values that it can have.
      low, above, high, below: bounds of a number, or of a tuple's items; low and high are inside.
      neutral: changes no result, so that a run may be resumed with another value.
      grows: measures the length of a run, which may grow under a constant learning rate.
      also: what other programs call it.
    """

    default: Any
    help: str
    kind: Any = None
    _: dataclasses.KW_ONLY
    choices: tuple[Any, ...] = ()
    low: float | None = None
    above: float | None = None
    high: float | None = None
    below: float | None = None
    neutral: bool = False
    grows: bool = False
    also: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", self.kind or type(self.default))

    @property
    def range(self) -> str:
        """Its choices or bounds in words; "" where there are none."""
        if self.choices:
            return ", ".join(map(repr, self.choices))
        return " and ".join(f"{word} {bound}" for word, _, bound in self._bounds())

    @property
    def described(self) -> str:
        """The line of help, with the choices or bounds."""
        return f"{self.help} ({self.range})" if self.range else self.help

    def fault(self, value: Any) -> str:
        """Says what is wrong with a value, such as "it must be at least 1"; "" for nothing."""
        if value is None and self.default is None:
            return ""
        if not isinstance(self.default, tuple):
            return self._fault(value, _NOUNS[self.kind])
        noun = f"a tuple of {_ITEMS[self.kind]}"
        if not isinstance(value, tuple | list):
            return f"it takes {noun}"
        return next(filter(None, (self._fault(item, noun) for item in value)), "")

    def _fault(self, value: Any, noun: str) -> str:
        fits = isinstance(value, _KINDS.get(self.kind, self.kind))
        if not fits or (isinstance(value, bool) and self.kind is not bool):
            return f"it takes {noun}"
        if value == "":
            return "give it a value, or leave it out"
        if self.choices:
            return "" if value in self.choices else f"it can be {self.range}"
        if isinstance(value, float) and not math.isfinite(value):
            return "it must be a finite number"
        outside = [f"{word} {b}" for word, holds, b in self._bounds() if not holds(value, b)]
        return f"it must be {outside[0]}" if outside else ""

    def _bounds(self) -> list[tuple[str, Callable[[Any, Any], bool], float]]:
        """In words, as a relation, and as a number."""
        found = (
            ("at least", operator.ge, self.low),
            ("above", operator.gt, self.above),
            ("at most", operator.le, self.high),
            ("below", operator.lt, self.below),
        )
        return [(word, holds, bound) for word, holds, bound in found if bound is not None]


Neutral = functools.partial(Setting, neutral=True)

DECLARED: dict[str | None, Mapping[str, Setting]] = {None: {}}
"""Task, or STUDY -> dotted key -> setting; None -> those of all tasks."""


def section(name: str, /, **settings: Setting) -> dict[str, Setting]:
    """Settings under their dotted keys."""
    return {f"{name}.{key}": setting for key, setting in settings.items()}


def declare(task: str | None, own: Mapping[str, Setting]) -> None:
    """Declares what a task has next to the settings of all tasks, or in the place of some."""
    DECLARED[task] = {**DECLARED[None], **own}


def declared_for(config: Mapping[str, Any] | ConfigDict) -> Mapping[str, Setting]:
    """The settings of a configuration's task, or of all tasks where it declared nothing."""
    return DECLARED.get(config.get("task", STUDY), DECLARED[None])


def defaults(declared: Mapping[str, Setting]) -> ConfigDict:
    """A configuration with settings at their defaults."""
    config = ConfigDict()
    for key, setting in declared.items():
        *sections, name = key.split(".")
        part = config
        for inner in sections:
            if inner not in part:
                part[inner] = ConfigDict()
            part = part[inner]
        part[name] = placeholder(setting.kind) if setting.default is None else setting.default
    return config


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"data.dir": ..., ...} of a nested configuration; tuples become lists, as in JSON."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = as_in_json(value)
    return flat


def completed(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Flat settings, with what they do not say at its declared default."""
    declared = declared_for(flat).items()
    return {key: as_in_json(setting.default) for key, setting in declared} | dict(flat)


def as_in_json(value: Any) -> Any:
    """The value, its tuples as lists; of a class or a function the name."""
    if isinstance(value, tuple | list):
        return [as_in_json(item) for item in value]
    return code.name_of(value) if callable(value) else value


def check(config: ConfigDict) -> None:
    """Refuses values that are not what was declared; names the key and what it can be."""
    flat, settings = flatten(config), declared_for(config)
    for key in (key for key in settings if key in flat and settings[key].kind is not object):
        if fault := settings[key].fault(flat[key]):
            raise _wrong(key, flat[key], fault)


def _wrong(key: str, value: Any, fault: str) -> UserError:
    shown = "empty" if value == "" else repr(value)
    return UserError(f"config.{key} is {shown}; {fault}")


def override(config: ConfigDict, key: str, text: str) -> None:
    """Sets a setting to the value that a text stands for.

    UserError: an unknown key, whose neighbours are named, or a value that does not fit.
    """
    if key not in flatten(config):
        raise _unknown(config, key)
    *sections, name = key.split(".")
    part = functools.reduce(lambda part, inner: part[inner], sections, config)
    kind, setting = part.get_type(name), declared_for(config).get(key)
    if setting is None and kind in _NOUNS:  # of the configuration file's own
        setting = Setting(part[name], "", kind)
    value: Any = text
    if kind is not str or (text == "None" and setting and setting.default is None):
        with contextlib.suppress(ValueError, SyntaxError):  # what is no literal stays text
            value = ast.literal_eval(text)
    if kind is bool:
        value = {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    elif kind is tuple and not isinstance(value, tuple | list):
        value = (value,)
    if setting and (fault := setting.fault(value)):
        raise _wrong(key, text, fault)
    try:
        part[name] = value
    except TypeError:
        raise _wrong(key, text, f"it takes a {kind.__name__}") from None


def _unknown(config: ConfigDict, key: str) -> UserError:
    """There is no such setting: which ones are called alike?"""
    known = flatten(config)
    if inside := [other for other in known if other.startswith(f"{key}.")]:
        return UserError(f"--config.{key} is a section: give its settings, as --config.{inside[0]}")
    leaf = key.rpartition(".")[2]
    every = itertools.chain.from_iterable(own.items() for own in DECLARED.values())
    leaves = {leaf, *(name.rpartition(".")[2] for name, setting in every if leaf in setting.also)}
    near = [other for other in known if other.rpartition(".")[2] in leaves]
    near += difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    hints = " or ".join(f"--config.{other}" for other in list(dict.fromkeys(near))[:4])
    hint = f"did you mean {hints}?" if hints else "--help has them all"
    return UserError(f"unknown setting --config.{key}; {hint}")


def described(config: ConfigDict) -> str:
    """Help on all settings of a configuration, by sections."""
    flat, settings = flatten(config), declared_for(config)
    lines = []
    for name, keys in _by_section(key for key in settings if key in flat).items():
        lines += ["", f"{name or 'general'}:"]
        for key in keys:
            lines.append(f"  --config.{key}={flat[key]}")
            lines.append(textwrap.indent(textwrap.fill(settings[key].described, 92), " " * 6))
    if more := sorted({key.partition(".")[0] for key in flat.keys() - settings.keys()}):
        lines += ["", f"and what is in {', '.join(more)}"]
    return "\n".join(lines)


def table(names: Sequence[str]) -> str:
    """A Markdown table of the settings of some tasks, with their defaults."""
    tasks = {name: DECLARED[name] for name in names}
    rows = ["| setting | default | what it is |", "|---|---|---|"]
    for keys in _by_section(key for own in tasks.values() for key in own).values():
        for key in dict.fromkeys(keys):
            own = {task: settings[key] for task, settings in tasks.items() if key in settings}
            by_default: dict[str, list[str]] = {}
            for task, setting in own.items():
                by_default.setdefault(f"`{setting.default}`", []).append(task)
            same = len(by_default) == 1 and len(own) == len(tasks)
            shown = [d if same else f"{d} ({', '.join(who)})" for d, who in by_default.items()]
            rows.append(f"| `{key}` | {'; '.join(shown)} | {next(iter(own.values())).described} |")
    return "\n".join(rows).replace(CACHE_ROOT, "~/.cache/skin_jax")


def _by_section(keys: Iterable[str]) -> dict[str, list[str]]:
    sections: dict[str, list[str]] = {}
    for key in keys:
        sections.setdefault(key.rpartition(".")[0], []).append(key)
    return sections
