"""The settings that all tasks share, and the configurations of runs: loaded, checked, kept."""

import hashlib
import importlib.util
import json
import sys
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

from skin_jax.base import code, folder, settings
from skin_jax.base.errors import UserError, first_line
from skin_jax.base.files import CACHE_ROOT, expanded, read_bytes, read_text, write_atomically
from skin_jax.base.settings import MAX_SEED, Neutral, Setting, flatten, section
from skin_jax.data import reading

_T = TypeVar("_T")

FILE_NAME = "config.json"
_IDENTITY = "identity"
"""The key of `config.json` that is no setting: what makes the files of a work folder one run."""

NO_WEIGHTS = "none"
HUB_PREFIX = "hf:"
"""`config.model.weights` other than a file: nothing, or a repository of huggingface.co."""

NO_TRACKER = "none"
"""`config.log.tracker` for none but TensorBoard."""

FILES = Path(__file__).parent / "configs"
"""Where the package's own configurations are: in a wheel inside of it, else next to it."""
if not FILES.is_dir():
    FILES = Path(__file__).parents[1] / "configs"

COMMON = {
    "task": Setting(None, "Name of the task that is trained.", object),
    "seed": Setting(0, "Seed of weights, order and augmentation.", low=0, high=MAX_SEED),
    "num_epochs": Setting(24, "Length in epochs.", low=1, grows=True, also=("epochs",)),
    "num_steps": Setting(
        None, "Length in steps; overrides num_epochs.", int, low=1, grows=True, also=("steps",)
    ),
    "batch_size": Setting(64, "Images in a training step.", low=1, also=("bs", "batch")),
    "eval_batch_size": Neutral(128, "Images in a batch of evaluation.", low=1),
    "eval_every_steps": Setting(None, "Steps between evaluations; None: an epoch.", int, low=1),
    "steps_per_dispatch": Setting(1, "Steps in one call of the device; 1 is best on a CPU.", low=1),
    "precision": Setting(
        "float32", "Precision of activations; all else is float32.", choices=("float32", "bf16")
    ),
    "watchdog_seconds": Neutral(
        600, "End a run that stands still for so long (status 75); 0: never.", low=0
    ),
    "final_split": Neutral(
        "test",
        "Split that a finished run is evaluated on; val while settings are chosen.",
        choices=("val", "test"),
    ),
    "profile": Neutral(False, "Write a trace of ten steps into profile/ in the work folder."),
    **section(
        "data",
        dir=Neutral(None, "Folder of the images.", str, also=("data_dir", "root", "path")),
        table=Setting(None, "CSV or TSV with images and labels; data.dir holds the images.", str),
        image_column=Setting(None, "Column with the images; None: guessed by its name.", str),
        label_column=Setting(None, "Column with the labels; None: guessed, also one-hot.", str),
        group_column=Setting(None, "Column with what no split divides; None: guessed.", str),
        split_column=Setting(None, "Column with train, val or test; None: guessed.", str),
        classes=Setting((), "Classes to take, in this order; empty: all that there are.", str),
        rename=Setting((), "Classes to rename, as pairs (old name, new name).", tuple),
        on_missing_label=Setting(
            "error",
            "Refuse a table with rows without a label, or keep their images as unlabelled.",
            choices=("error", "keep"),
        ),
        download=Neutral(False, "Download the ISIC 2018 archives (3 GB) where no folder is given."),
        demo_images=Setting(0, "Number of procedural images where no folder is given.", low=0),
        image_size=Setting(224, "Side of the images in pixels.", low=1, also=("size", "img_size")),
        split=Setting(
            "lesion",
            "lesion: no lesion or patient on two sides; paper: by image, as in paper A; official: "
            "the split that comes with the data.",
            choices=("lesion", "paper", "official"),
        ),
        split_fractions=Setting(
            (0.7, 0.1, 0.2), "Shares of train, val and test.", float, low=0, high=1
        ),
        split_counts=Setting(
            (),
            "Lesions of each class in train and val, all others being test, in the place of "
            "split_fractions; empty: those.",
            int,
            low=0,
        ),
        split_seed=Setting(0, "Seed of the split, and of nothing else.", low=0, high=MAX_SEED),
        fold=Setting(None, "Fold of a cross-validation by lesion.", int, low=0, high=4),
        label_fraction=Setting(
            1.0,
            "Share of the lesions in train whose labels are known, of each class; the other images "
            "are trained on without a label, where the task can.",
            above=0,
            high=1,
            also=("labeled_fraction", "labelled_fraction"),
        ),
        label_seed=Setting(0, "Seed of the choice of these lesions.", low=0, high=MAX_SEED),
        sampling=Setting(
            "natural",
            "natural: each image once an epoch; balanced: all classes equally often; power: a "
            "class of n images in proportion to n^sampling_exponent.",
            choices=("natural", "balanced", "power"),
        ),
        sampling_exponent=Setting(0.5, "Exponent of data.sampling='power'.", low=0, high=1),
        oversample_to=Setting(
            None, "Repeat images of rarer classes up to this number.", int, low=1
        ),
        synthetic=Neutral(None, "Folder of skin_jax.generate to train with.", str),
        synthetic_ratio=Setting(
            None, "Largest number of generated images per real one of a class.", float, low=0
        ),
        synthetic_allow_foreign=Neutral(False, "Accept generators trained on another split."),
        on_bad_image=Neutral(
            "error", "End at an unreadable image, or leave it out.", choices=("error", "skip")
        ),
        cache_dir=Neutral(CACHE_ROOT, "Folder in which prepared images are kept."),
        pipeline=Neutral(
            "auto",
            "device: images stay in device memory; tf: tf.data; auto: device where they fit.",
            choices=("tf", "device", "auto"),
        ),
    ),
    "sharding.num_devices": Neutral(
        None, "Number of devices; None: all.", int, low=1, also=("gpus",)
    ),
    **section(
        "distributed",
        coordinator_address=Neutral(None, "host:port of process 0, where JAX detects none.", str),
        num_processes=Neutral(None, "How many; 1: no others, whatever is detected.", int, low=1),
        process_id=Neutral(None, "Number of this process, from 0.", int, low=0),
        heartbeat_timeout_seconds=Neutral(
            100, "A process silent for so long is taken for dead.", low=1
        ),
    ),
    "log.every_steps": Neutral(20, "Steps between progress lines and logged losses.", low=1),
    "log.tensorboard": Neutral(True, "Write events for TensorBoard."),
    "log.tracker": Neutral(
        NO_TRACKER,
        "One more tracker; its package is an extra, and its own variables say where it reports to.",
        choices=(NO_TRACKER, "wandb", "trackio", "mlflow"),
    ),
    "checkpoint.every_steps": Neutral(
        500, "Steps between checkpoints, next to those of evaluations.", low=1
    ),
}
"""The settings of every task; neutral ones change no result, as images have their own digests."""

settings.declare(None, COMMON)


def base(task: Any = None) -> ConfigDict:
    """A task's settings at their defaults; of None or a task of one's own, those of all tasks."""
    config = settings.defaults(settings.DECLARED.get(task, COMMON))
    with config.ignore_type():
        config.task = task
    return config


def shrink(config: ConfigDict) -> None:
    """Makes a run one of about a minute that saves three times before its end; keeps the split."""
    small = {"data.image_size": 32, "batch_size": 32, "num_steps": 40}
    config.update_from_flattened_dict({**small, "eval_every_steps": 10, "log.every_steps": 10})


def for_variant(
    config: ConfigDict, variant: str, smoke: Callable[[ConfigDict], None]
) -> ConfigDict:
    """The configuration itself (""), or shrunk by its task ("smoke"); UserError for others."""
    if variant not in ("", "smoke"):
        raise UserError(f"there is no variant {variant!r} of this configuration; there is ':smoke'")
    if variant:
        smoke(config)
    return config


def load(file: str) -> ConfigDict:
    """The configuration of a file, or the package's own of that name, with its variant.

    Such as "demo", "configs/demo.py:smoke", "/home/me/mine.py". UserError: there is no such file,
    or it fails: it is a program.
    """
    name, _, variant = file.partition(":")
    path = expanded(name)
    if not path.is_file() and str(path.parent) in (".", "configs"):
        path = FILES / f"{path.stem}.py"
    if not path.is_file():
        own = ", ".join(sorted(path.stem for path in FILES.glob("*.py")))
        raise UserError(f"there is no file {name} in {Path.cwd()}; skin_jax itself has {own}")
    # A module, which `inspect` finds again by the classes that the file defines.
    module: Any = types.ModuleType(f"configuration {path.absolute()}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    try:
        exec(compile(path.read_bytes(), path, "exec"), vars(module))
        return module.get_config(variant) if variant else module.get_config()
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f", line {frame.lineno}," for frame in frames if frame.filename == str(path)]
        where = f"{path}{lines[-1] if lines else ''}"
        raise UserError(
            f"the configuration {where} failed: {type(error).__name__}: {first_line(error)}"
        ) from None


def is_procedural(data: Mapping[str, Any]) -> bool:
    """Whether the section `data` asks for procedural lesions: a number of them, and no folder."""
    return data["dir"] is None and not data["download"] and data["demo_images"] > 0


def without_folders(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Flat settings without the folders of this machine: reports are passed on."""
    hidden = ("data.dir", "data.cache_dir", "distributed.coordinator_address")
    shown = {key: value for key, value in flat.items() if key not in hidden}
    for key in ("model.weights", "score.weights", "data.synthetic", "data.table"):
        if shown.get(key) is not None:
            shown[key] = Path(shown[key]).name
    return shown


def normalize(config: ConfigDict) -> None:
    """Makes paths absolute, in place: a run can be resumed and looked at from any folder."""
    for key in ("dir", "synthetic"):
        if config.data[key] is not None:
            config.data[key] = str(expanded(config.data[key]).absolute())
    if config.data.table is not None:
        config.data.table = reading.place(config.data.table, config.data.dir)
    for part in (config.get("model", {}), config.get("score", {})):
        weights = part.get("weights", NO_WEIGHTS)
        if weights != NO_WEIGHTS and not weights.startswith(HUB_PREFIX):
            part.weights = str(expanded(weights).absolute())


def to_json(config: ConfigDict) -> str:
    """The configuration as JSON; of code of one's own, where it stands: UserError if nowhere."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True, default=code.record)


def write(config: ConfigDict, workdir: Path, files: Sequence[str] | None = ()) -> None:
    """Writes `config.json`, whole or not at all, and in it the identity of the run.

    Args:
      config: of the run.
      workdir: its folder.
      files: names of files there that no later command may find changed; None for a run that is
        resumed: its identity stays, or is missing where it began with a version that had none.
    """
    content = json.loads(to_json(config))
    if files is None:
        identity = _content(workdir / FILE_NAME).get(_IDENTITY)
    else:
        identity = {"files": {name: _sha256(read_bytes(workdir / name)) for name in files}}
    if identity is not None:
        free = sorted(key for key in flatten(content) if is_neutral(key))
        identity |= {"free": free, "settings": _settings_digest(content, free)}
        identity.setdefault("run", _sha256(json.dumps(identity, sort_keys=True).encode()))
        content = {_IDENTITY: identity, **content}
    write_atomically(workdir / FILE_NAME, json.dumps(content, indent=2) + "\n")


def read(workdir: Path) -> ConfigDict:
    """The configuration of a work folder; what it does not say has the declared default.

    UserError: there is none, it is damaged, or files of the folder are not those of its run.
    """
    path = workdir / FILE_NAME
    try:
        text = json.dumps(checked(_content(path), workdir))
        content = json.loads(text, object_hook=lambda o: code.load(o, path))
        if not {"task", "data"} <= content.keys():
            raise ValueError("it lacks sections")
        config = base(content["task"])
        config.update({key: value for key, value in content.items() if key != "task"})
        flat = flatten(config)
        for key, setting in settings.declared_for(config).items():
            if flat[key] is None and setting.default is not None:
                raise ValueError(f"{key} is null")
        return config
    except OSError as error:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise UserError(f"{path} cannot be read ({error.strerror})") from None
        raise UserError(
            f"{workdir.absolute()} is not the work folder of a run: it has no {FILE_NAME}"
        ) from None
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({first_line(error)}); restore it or start in a new folder"
        ) from None


def checked(content: dict[str, Any], workdir: Path) -> dict[str, Any]:
    """The settings in a `config.json`; refuses, by name, files that are not those of its run."""
    settings = {key: value for key, value in content.items() if key != _IDENTITY}
    identity = content.get(_IDENTITY)
    if identity is None:  # of an older version
        return settings
    mend = "restore it from a copy, or create the run again in a new folder"
    if identity["settings"] != _settings_digest(settings, identity["free"]):
        raise UserError(f"{workdir / FILE_NAME} was edited since the run wrote it; {mend}")
    for name, digest in identity["files"].items():
        try:
            found = _sha256(read_bytes(workdir / name))
        except OSError as error:
            raise UserError(f"{workdir / name} cannot be read ({error.strerror}); {mend}") from None
        if found != digest:
            raise UserError(f"{workdir / name} is not the file that the run wrote; {mend}")
    return settings


def run_in(workdir: Path) -> str | None:
    """Which run a work folder is of; None where there is none, or of an older version.

    Equal for runs with the same settings, images, classes and split.
    """
    try:
        return str(_content(workdir / FILE_NAME)[_IDENTITY]["run"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _content(path: Path) -> dict[str, Any]:
    content = json.loads(read_text(path))
    if not isinstance(content, dict):
        raise ValueError("it is not an object")
    return content


def _settings_digest(content: Mapping[str, Any], free: Sequence[str]) -> str:
    """SHA-256 of the settings but for those that may change."""
    kept = {key: value for key, value in flatten(content).items() if key not in free}
    return _sha256(json.dumps(kept, sort_keys=True).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def validate(config: ConfigDict) -> None:
    """Refuses settings outside of their ranges, or that do not fit: names key, value and choice."""
    settings.check(config)
    data = config.data
    without_tf = data.pipeline == "tf" and not importlib.util.find_spec("tensorflow")
    repeats = data.oversample_to is not None
    faults = {
        "pipeline is 'tf', but TensorFlow is not installed; install the extra skin_jax[tf] or pass "
        "--config.data.pipeline=device": without_tf,
        "synthetic_ratio needs generated images; give their folder with --config.data.synthetic, "
        "or leave it out": data.synthetic_ratio is not None and data.synthetic is None,
        "oversample_to is the control of config.data.synthetic: it repeats real images in the "
        "place of generated ones; give one of them": repeats and data.synthetic is not None,
        f"oversample_to has no place next to config.data.sampling='{data.sampling}', which says "
        "itself how often a class is drawn; give one of them": repeats
        and data.sampling != "natural",
        "oversample_to changes nothing for a network of each class, whose batches are of its own "
        "images; leave it out": repeats and "classes" in config,
    }
    for fault, holds in faults.items():
        if holds:
            raise UserError(f"config.data.{fault}")


def check_resumable(old: ConfigDict, new: ConfigDict, workdir: Path) -> None:
    """Refuses to resume a run with settings that change its result, and names all that differ.

    Under a constant learning rate the run may become longer.
    """
    before, after = flatten(old), flatten(new)
    if after.get("optimizer.schedule") == "constant":
        for key in (key for key, s in settings.declared_for(new).items() if s.grows):
            if before[key] and after[key] and before[key] < after[key]:
                before[key] = after[key]
    if differing := differences(before, after):
        raise UserError(
            f"{workdir} holds a run with other settings; give them as they were, or take a new "
            "--workdir: " + "; ".join(differing)
        )


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Lists differences that can change a result, one phrase a key; absent keys are at default."""
    kept = [
        {f"config.{key}": v for key, v in settings.completed(flat).items() if not is_neutral(key)}
        for flat in (before, after)
    ]
    return folder.differences(*kept)


def is_neutral(key: str) -> bool:
    """Whether a resumed run may change a setting of all tasks: it cannot change a result."""
    return key in COMMON and COMMON[key].neutral


def choice(value: _T, allowed: Sequence[_T], key: str) -> _T:
    """The value of `config.<key>`; a UserError with the choices if it is not one allowed."""
    if value not in allowed:
        options = ", ".join(repr(option) for option in allowed)
        raise UserError(f"config.{key} is {value!r}; it can be {options}")
    return value
