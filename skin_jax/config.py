"""The defaults that every configuration starts from, and which keys change a result."""

import difflib
import importlib.util
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from skin_jax.base.errors import UserError
from skin_jax.base.files import write_atomically
from skin_jax.data import reading
from skin_jax.data.classes import CLASSES

if TYPE_CHECKING:
    import numpy as np

_T = TypeVar("_T")

FILE_NAME = "config.json"

CACHE_ROOT = os.path.join(
    os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache"), "skin_jax"
)
"""Where what can be made again is kept between runs; `~` is the user's home."""

NO_WEIGHTS = "none"
HUB_PREFIX = "hf:"
"""What `config.model.weights` can be beside a file: nothing, or a repository of huggingface.co."""

_NEUTRAL = (
    "data.dir",
    "data.download",
    "data.cache_dir",
    "data.pipeline",
    "data.on_bad_image",
    "data.synthetic",
    "data.synthetic_allow_foreign",
    "eval_batch_size",
    "sharding",
    "distributed",
    "watchdog_seconds",
    "profile",
    "log",
    "checkpoint",
)
"""Keys, or sections, that a resumed run may change: none of them changes a result.

The images themselves, real and generated, must have the digests that they had.
"""

_LENGTH = ("num_epochs", "num_steps")
_LATER: dict[str, list] = {"data.classes": [], "data.rename": []}
"""Keys that runs of before did not have, and what they did."""
_LOWEST = {
    "seed": 0,
    "num_epochs": 1,
    "num_steps": 1,
    "batch_size": 1,
    "eval_batch_size": 1,
    "eval_every_steps": 1,
    "steps_per_dispatch": 1,
    "data.image_size": 1,
    "data.demo_images": 0,
    "data.split_seed": 0,
    "data.synthetic_ratio": 0.0,
    "data.oversample_to": 1,
    "log.every_steps": 1,
    "checkpoint.every_steps": 1,
    "watchdog_seconds": 0,
}


def base() -> ConfigDict:
    """The defaults: training, data, sharding, logging and checkpoints.

    A file in `configs/` adds the sections of its task (`model`, `loss`, `augment`, `optimizer`).
    """
    config = ConfigDict()
    config.task = placeholder(str)
    config.seed = 0  # weights, order, augmentation; never the split
    config.num_epochs = 24
    config.num_steps = placeholder(int)  # overrides num_epochs
    config.batch_size = 64
    config.eval_batch_size = 128
    config.eval_every_steps = placeholder(int)  # once an epoch where not given
    config.steps_per_dispatch = 1
    config.precision = "float32"  # or "bf16": compute only; parameters and losses stay float32

    config.data = ConfigDict()
    config.data.dir = placeholder(str)
    config.data.download = False
    config.data.demo_images = 0  # procedural images where no folder is given; 0 asks for a folder
    config.data.table = placeholder(str)  # labels the images of data.dir; see skin_jax.data.reading
    config.data.image_column = placeholder(str)
    config.data.label_column = placeholder(str)
    config.data.group_column = placeholder(str)
    config.data.split_column = placeholder(str)
    config.data.classes = ()  # all
    config.data.rename = ()  # (("name there", "name here"), ...)
    config.data.image_size = 224
    config.data.split = "lesion"  # "paper", "official"
    config.data.split_fractions = (0.7, 0.1, 0.2)
    config.data.split_seed = 0
    config.data.fold = placeholder(int)  # 0 to 4: cross-validation
    config.data.sampling = "natural"  # "balanced"
    config.data.oversample_to = placeholder(int)  # repeats images of rarer classes to so many
    config.data.synthetic = placeholder(str)  # a folder of skin_jax.generate: trained with, too
    config.data.synthetic_ratio = placeholder(float)  # at most so many for each real image
    config.data.synthetic_allow_foreign = False  # of a generator fitted on another split
    config.data.on_bad_image = "error"  # "skip"
    config.data.cache_dir = CACHE_ROOT
    config.data.pipeline = "auto"  # "tf", "device"

    config.sharding = ConfigDict()
    config.sharding.num_devices = placeholder(int)  # all of them where not given

    config.distributed = ConfigDict()  # of a cluster that JAX does not detect itself
    config.distributed.coordinator_address = placeholder(str)  # "host:port" of process 0
    config.distributed.num_processes = placeholder(int)  # 1: alone, whatever is detected
    config.distributed.process_id = placeholder(int)
    config.distributed.heartbeat_timeout_seconds = 100  # silent for so long is dead

    config.watchdog_seconds = 600  # a step takes longer: the run ends with status 75; 0 is off

    config.profile = False  # True: a trace of ten steps in the work folder

    config.log = ConfigDict()
    config.log.every_steps = 20
    config.log.tensorboard = True

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 500  # beside one at every evaluation
    return config


def _turned_and_mirrored() -> ConfigDict:
    """Fields of `augment.Augmentation`; a dermoscopic image has no upper side. The rest is off."""
    section = ConfigDict()
    section.crop = 1.0
    section.flip = True
    section.rotate90 = True
    section.rotation = 0.0
    section.blur_sigma = 0.0
    section.blur_probability = 0.5
    section.salt_and_pepper = 0.0
    section.salt_and_pepper_probability = 0.5
    return section


def sgan() -> ConfigDict:
    """`base` and the sections of the semi-supervised GAN, with the defaults of paper A.

    Rashid et al., EMBC 2019; what the paper leaves open is marked.
    """
    config = base()
    config.task = "sgan"
    config.ema_decay = 0.0  # off

    config.model = ConfigDict()
    config.model.width = 64  # open
    config.model.noise_size = 128  # open
    config.model.generator_batch_norm = True  # open
    config.model.discriminator_batch_norm = False  # open

    config.loss = ConfigDict()
    config.loss.reading = "softmax"  # "separate"
    config.loss.generator = "non_saturating"  # "minimax" as printed, "feature_matching"
    config.loss.generated_images = "fake"  # "pseudo_label": confident ones train their class too
    config.loss.pseudo_label_from_epoch = 5  # "after a few epochs"
    config.loss.pseudo_label_threshold = 0.95  # open
    config.loss.class_weights = "none"  # "balanced"
    config.loss.updates = "sequential"  # "simultaneous"

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 1e-4
    config.optimizer.b1 = 0.5  # open
    config.optimizer.b2 = 0.999  # open
    config.optimizer.schedule = "constant"  # "cosine"
    config.optimizer.warmup_steps = 0

    config.augment = _turned_and_mirrored()
    config.augment.crop = 0.8
    config.augment.rotation = 15.0
    config.augment.blur_sigma = 1.0
    config.augment.salt_and_pepper = 0.01
    return config


def dcgan() -> ConfigDict:
    """`base` and the sections of the DCGANs, one a class, with the settings of Radford et al. 2016.

    Paper B takes them as they are; what neither has is marked. A batch holds `batch_size` images of
    each class, and an epoch is a pass over the largest of the chosen classes.
    """
    config = base()
    config.task = "dcgan"
    config.eval_every_steps = 250  # the same for any choice of classes: it decides on the best ones
    config.classes = CLASSES
    config.stack = "auto"  # "vmap", "unroll": how the classes share a program
    config.ema_decay = 0.999  # neither; 0.0: off
    config.keep_generators_every = 10  # evaluations: what `generate --step` can choose from

    config.model = ConfigDict()
    config.model.width = 64
    config.model.noise_size = 100

    config.score = ConfigDict()  # of the generators, at every evaluation
    config.score.weights = NO_WEIGHTS  # EfficientNet-Lite0's: KID; else sliced Wasserstein distance
    config.score.images = 500  # generated ones of each class, and as many real ones at most

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 2e-4
    config.optimizer.b1 = 0.5
    config.optimizer.b2 = 0.999
    config.optimizer.schedule = "constant"  # "cosine"
    config.optimizer.warmup_steps = 0

    config.augment = _turned_and_mirrored()  # neither
    return config


def class_labels(config: ConfigDict) -> "np.ndarray | None":
    """The classes of a task that has a network for each, int [K], increasing; None for other tasks.

    Raises:
      UserError: an unknown class, or none at all.
    """
    if "classes" not in config:
        return None
    names = config.classes
    if not names or set(names) - set(CLASSES):
        raise UserError(
            f"config.classes is {names!r}; it takes names such as ('mel','df') out of "
            f"{', '.join(CLASSES)}"
        )
    import numpy as np  # --help needs none

    return np.array(sorted({CLASSES.index(name) for name in names}))


def classifier() -> ConfigDict:
    """`base` and the sections of a classifier, with defaults for fine-tuning.

    A file in `configs/` names the network and its weights.
    """
    config = base()
    config.task = "classifier"
    config.ema_decay = 0.999  # 0.0: off

    config.model = ConfigDict()
    config.model.name = placeholder(str)  # see skin_jax.tasks.classifier.MODELS
    config.model.weights = NO_WEIGHTS  # FILE.safetensors, "hf:timm/resnet50.a1_in1k" and the like
    config.model.dropout = 0.0  # before the last layer
    config.model.width_multiplier = 1.0

    config.loss = ConfigDict()
    config.loss.class_weights = "none"  # "balanced"
    config.loss.label_smoothing = 0.1

    config.optimizer = ConfigDict()  # see skin_jax.tasks.optimizers.fine_tuning
    config.optimizer.learning_rate = 2e-3  # of the head
    config.optimizer.backbone_multiplier = 0.5
    config.optimizer.weight_decay = 0.02
    config.optimizer.schedule = "cosine"  # "constant"
    config.optimizer.warmup_steps = 100

    config.augment = _turned_and_mirrored()
    config.augment.crop = 0.7
    config.augment.rotation = 30.0
    return config


def for_variant(config: ConfigDict, variant: str) -> ConfigDict:
    """The configuration itself (""), or shrunk to a try of about a minute ("smoke").

    A smoke run keeps the data set and the split; it saves three checkpoints before its end.

    Raises:
      UserError: another variant.
    """
    if variant not in ("", "smoke"):
        raise UserError(f"there is no variant {variant!r} of this configuration; there is ':smoke'")
    if variant == "smoke":
        if config.task == "sgan":
            config.model.width = 8
            config.loss.pseudo_label_from_epoch = 0  # or they would not begin
        elif config.task == "dcgan":
            config.model.width = 8
            config.score.images = 50
        else:
            config.model.width_multiplier = 0.25
            config.model.weights = NO_WEIGHTS  # those of a whole network do not fit a narrow one
            config.optimizer.warmup_steps = 10
        config.data.image_size = 32
        config.batch_size = 32
        config.num_steps = 40
        config.eval_every_steps = 10
        config.log.every_steps = 10
    return config


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"data.dir": ..., ...} of a nested configuration; tuples become lists, as in JSON."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _plain(value)
    return flat


def _plain(value: Any) -> Any:
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


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
    """Writes settings that mean the same in the same way, in place.

    Paths become absolute, so that a run can be resumed and looked at from any folder, and classes
    are named in their order.

    Raises:
      UserError: an unknown class.
    """
    if (labels := class_labels(config)) is not None:
        config.classes = tuple(CLASSES[label] for label in labels)
    for key in ("dir", "synthetic"):
        if config.data[key] is not None:
            config.data[key] = str(Path(config.data[key]).expanduser().absolute())
    if config.data.table is not None:
        config.data.table = reading.place(config.data.table, config.data.dir)
    for section in (config.model, config.get("score", {})):
        weights = section.get("weights", NO_WEIGHTS)
        if weights != NO_WEIGHTS and not weights.startswith(HUB_PREFIX):
            section.weights = str(Path(weights).expanduser().absolute())


def write(config: ConfigDict, workdir: Path) -> None:
    """Writes `config.json`, whole or not at all."""
    text = json.dumps(config.to_dict(), indent=2, sort_keys=True)
    write_atomically(workdir / FILE_NAME, text + "\n")


def read(workdir: Path) -> ConfigDict:
    """The configuration of a work folder.

    Raises:
      UserError: there is none, or it is damaged.
    """
    path = workdir / FILE_NAME
    try:
        content = json.loads(path.read_text())
        if not {"task", "data", "model"} <= content.keys():
            raise ValueError("it lacks sections")
        return ConfigDict(content)
    except OSError:
        raise UserError(
            f"{workdir.absolute()} is not the work folder of a run: it has no {FILE_NAME}"
        ) from None
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged ({error}); restore it or start in a new folder"
        ) from None


def validate(config: ConfigDict) -> None:
    """Refuses settings of `base` that are outside their ranges, before any work is done.

    Raises:
      UserError: names the key, the value and what it can be.
    """
    flat = flatten(config)
    for key, lowest in _LOWEST.items():
        at_least(flat[key], lowest, key)
    data = config.data
    choice(data.split, ("lesion", "paper", "official"), "data.split")
    choice(data.sampling, ("natural", "balanced"), "data.sampling")
    choice(data.on_bad_image, ("error", "skip"), "data.on_bad_image")
    choice(data.pipeline, ("tf", "device", "auto"), "data.pipeline")
    if data.pipeline == "tf" and not importlib.util.find_spec("tensorflow"):
        raise UserError(
            "config.data.pipeline is 'tf', but TensorFlow is not installed; install the extra "
            "skin_jax[tf] or pass --config.data.pipeline=device"
        )
    if not all(isinstance(share, int | float) for share in data.split_fractions):
        raise UserError(
            f"config.data.split_fractions is {data.split_fractions}; it takes three numbers, such "
            "as (0.7,0.1,0.2)"
        )
    for key in ("dir", "synthetic"):
        if data[key] == "":
            raise UserError(f"config.data.{key} is empty; give a folder, or leave it out")
    _validate_balancing(data)
    if data.oversample_to is not None and "classes" in config:
        raise UserError(
            "config.data.oversample_to changes nothing for a network of each class, whose batches "
            "are of its own images; leave it out"
        )


def _validate_balancing(data: ConfigDict) -> None:
    """Refuses ways of balancing the classes that say nothing, or two things, together."""
    if data.synthetic_ratio is not None and data.synthetic is None:
        raise UserError(
            "config.data.synthetic_ratio needs generated images; give their folder with "
            "--config.data.synthetic, or leave it out"
        )
    if data.synthetic_ratio == math.inf:
        raise UserError("config.data.synthetic_ratio is inf; leave it out for all images")
    if data.oversample_to is not None and data.synthetic is not None:
        raise UserError(
            "config.data.oversample_to is the control of config.data.synthetic: it repeats real "
            "images in the place of generated ones; give one of them"
        )
    if data.oversample_to is not None and data.sampling == "balanced":
        raise UserError(
            "config.data.oversample_to changes nothing with config.data.sampling='balanced', which "
            "draws every class equally often; give one of them"
        )


def check_resumable(old: ConfigDict, new: ConfigDict, workdir: Path) -> None:
    """Refuses to go on with a run under a configuration that would change its result.

    Under a constant learning rate the run may become longer.

    Raises:
      UserError: names every key that differs, with both values.
    """
    before, after = flatten(old), flatten(new)
    for key in _LENGTH if after.get("optimizer.schedule") == "constant" else ():
        old_length, new_length = before.get(key), after.get(key)
        if old_length and new_length and old_length < new_length:
            before[key] = new_length
    if differing := differences(before, after):
        raise UserError(
            f"{workdir} holds a run with other settings; give them as they were, or take a new "
            "--workdir: " + "; ".join(differing)
        )


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs between two flat configurations and can change a result, one phrase a key."""
    return [
        f"config.{key}: {before.get(key)!r} there, {after.get(key)!r} now"
        for key in sorted(before.keys() | after.keys())
        if before.get(key, _LATER.get(key)) != after.get(key, _LATER.get(key))
        and not is_neutral(key)
    ]


def is_neutral(key: str) -> bool:
    """Whether a resumed run may change a setting: it cannot change a result."""
    return any(key == neutral or key.startswith(f"{neutral}.") for neutral in _NEUTRAL)


def path_in(argv: list[str]) -> str:
    """The configuration file that a command line names, with its variant; "" for none."""
    for position, arg in enumerate(argv):
        name, _, value = arg.partition("=")
        if name.lstrip("-") == "config":
            return value or "".join(argv[position + 1 : position + 2])
    return ""


def unknown_key_error(argv: list[str], load: Callable[[str], ConfigDict]) -> UserError:
    """Explains an override of a key that the configuration file does not define.

    Args:
      argv: the command line.
      load: reads a configuration file (with its `:variant`).
    """
    path = path_in(argv)
    names = [arg.lstrip("-").partition("=")[0].removeprefix("no") for arg in argv]
    overrides = [n.removeprefix("config.") for n in names if n.startswith("config.")]
    try:
        loaded = load(path)
    except (AttributeError, KeyError) as error:
        return UserError(f"the configuration {path} failed: {type(error).__name__}: {error}")
    known = flatten(loaded)
    sections = {key.rpartition(".")[0] for key in known}
    unknown = [key for key in overrides if key not in known and key not in sections]
    sentences = []
    for key in unknown:
        near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
        near += [k for k in known if k.rpartition(".")[2] == key.rpartition(".")[2]]
        hint = ", ".join(f"--config.{k}" for k in dict.fromkeys(near)) or "see " + path
        sentences.append(f"unknown key --config.{key}; did you mean {hint}?")
    return UserError(" ".join(sentences) or f"a --config. override does not fit {path}")


def choice(value: _T, allowed: Sequence[_T], key: str) -> _T:
    """The value of `config.<key>`, if it is one of those allowed.

    Raises:
      UserError: names the key, the value and the choices.
    """
    if value not in allowed:
        options = ", ".join(repr(option) for option in allowed)
        raise UserError(f"config.{key} is {value!r}; it can be {options}")
    return value


def at_least(value: float | None, lowest: float, key: str) -> None:
    """Refuses a value of `config.<key>` below the lowest; None, where it is allowed, is fine.

    Raises:
      UserError: names the key and the value.
    """
    if value is not None and not value >= lowest:
        raise UserError(f"config.{key} is {value}; it must be at least {lowest}")
