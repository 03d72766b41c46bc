"""Pretrained weights: the tensors of timm and torchvision, from a file, as Flax variables."""

import re
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open

from skin_jax.base.errors import UserError, first_line, listed
from skin_jax.base.files import expanded
from skin_jax.config import HUB_PREFIX
from skin_jax.models import densenet
from skin_jax.models.densenet import DenseNet
from skin_jax.models.efficientnet_lite import LITE, EfficientNetLite, lite
from skin_jax.models.layers import block_name
from skin_jax.models.resnet import ResNet

PyTree = Any
Kind = Literal["conv", "norm", "dense"]

HEAD = "head"
"""The submodule of every network that depends on the classes."""

_HUB_FILE = "model.safetensors"
_LISTED = 40

# What a layer holds: collection and name of a variable, and the last part of the tensor's name.
_PARTS: dict[Kind, tuple[tuple[str, str, str], ...]] = {
    "conv": (("params", "kernel", "weight"),),
    "norm": (
        ("params", "scale", "weight"),
        ("params", "bias", "bias"),
        ("batch_stats", "mean", "running_mean"),
        ("batch_stats", "var", "running_var"),
    ),
    "dense": (("params", "kernel", "weight"), ("params", "bias", "bias")),
}

# The axes of a tensor in the order of the variable's: OIHW -> HWIO, [out, in] -> [in, out].
_AXES = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}

# PyTorch counts the batches that a batch norm saw; nothing here depends on it.
_PASSED_OVER = ".num_batches_tracked"


class Layer(NamedTuple):
    """One layer of a network: the path of its submodule, and what files call it.

    A file has one of the `names`; it is followed by ".weight" and so on.
    """

    module: tuple[str, ...]
    kind: Kind
    names: tuple[str, ...]


def _layer(module: str, kind: Kind, *names: str) -> Layer:
    return Layer(tuple(module.split("/")), kind, names)


def _efficientnet_lite(network: EfficientNetLite) -> Iterator[Layer]:
    yield _layer("stem_conv", "conv", "conv_stem")
    yield _layer("stem_norm", "norm", "bn1")
    for i, stage in enumerate(network.stages):
        # The blocks of timm count their convolutions; those that expand have one more.
        if stage.expansion == 1:
            convs = {"depthwise": "conv_dw", "project": "conv_pw"}
        else:
            convs = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl"}
        for j in range(stage.repeats):
            block = block_name(i, j)
            for n, (ours, name) in enumerate(convs.items(), 1):
                yield _layer(f"{block}/{ours}_conv", "conv", f"blocks.{i}.{j}.{name}")
                yield _layer(f"{block}/{ours}_norm", "norm", f"blocks.{i}.{j}.bn{n}")
    yield _layer("last_conv", "conv", "conv_head")
    yield _layer("last_norm", "norm", "bn2")
    yield _layer(f"{HEAD}/logits", "dense", "classifier")


def _resnet(network: ResNet) -> Iterator[Layer]:
    yield _layer("stem_conv", "conv", "conv1")
    yield _layer("stem_norm", "norm", "bn1")
    for i, size in enumerate(network.stage_sizes):
        for j in range(size):
            block, theirs = block_name(i, j), f"layer{i + 1}.{j}"
            for n in (1, 2, 3):
                yield _layer(f"{block}/conv{n}", "conv", f"{theirs}.conv{n}")
                yield _layer(f"{block}/norm{n}", "norm", f"{theirs}.bn{n}")
            if j == 0:
                yield _layer(f"{block}/shortcut_conv", "conv", f"{theirs}.downsample.0")
                yield _layer(f"{block}/shortcut_norm", "norm", f"{theirs}.downsample.1")
    yield _layer(f"{HEAD}/logits", "dense", "fc")


def _densenet(network: DenseNet) -> Iterator[Layer]:
    yield _layer("stem_conv", "conv", "features.conv0")
    yield _layer("stem_norm", "norm", "features.norm0")
    for i, size in enumerate(network.block_sizes):
        if i > 0:
            ours, theirs = f"transition{i - 1}", f"features.transition{i}"
            yield _layer(f"{ours}/norm", "norm", f"{theirs}.norm")
            yield _layer(f"{ours}/conv", "conv", f"{theirs}.conv")
        for j in range(size):
            ours = densenet.layer_name(i, j)
            theirs = f"features.denseblock{i + 1}.denselayer{j + 1}"
            for n in (1, 2):
                # The released files of torchvision have a dot before the number, timm's have none.
                norms, convs = (
                    (f"{theirs}.{kind}{n}", f"{theirs}.{kind}.{n}") for kind in ("norm", "conv")
                )
                yield _layer(f"{ours}/norm{n}", "norm", *norms)
                yield _layer(f"{ours}/conv{n}", "conv", *convs)
    yield _layer("last_norm", "norm", "features.norm5")
    yield _layer(f"{HEAD}/logits", "dense", "classifier")


_TABLES: dict[type[nn.Module], Callable[[Any], Iterator[Layer]]] = {
    DenseNet: _densenet,
    EfficientNetLite: _efficientnet_lite,
    ResNet: _resnet,
}


def load(
    variables: PyTree,
    network: nn.Module,
    source: str,
    *,
    head: bool = False,
    flag: str = "--config.model.weights",
) -> PyTree:
    """Returns the variables of a network with the weights of a file in their place.

    Every tensor of the file is used once; only PyTorch's counters of batches and, unless `head`,
    the tensors of the head are passed over.

    Args:
      variables: {"params", "batch_stats"} of arrays or `jax.ShapeDtypeStruct`s.
      network: whose variables they are.
      source: the path of a `.safetensors`, or `hf:owner/name[@revision]`, a repository of
        huggingface.co that has a `model.safetensors`.
      head: also load the head, which then must have the file's number of classes.
      flag: where `source` was given, for messages.

    Returns:
      The same structure with NumPy arrays, float32, but for the variables of the submodule "head",
      which are returned as they came unless `head`.

    Raises:
      UserError: the network is always trained from scratch; the file cannot be had or read, or its
        tensors do not fit the network: every missing, left-over, misshapen and non-finite one is
        listed.
    """
    if type(network) not in _TABLES:
        known = ", ".join(sorted(kind.__name__ for kind in _TABLES))
        raise UserError(
            f"{flag} is {source}, but a {type(network).__name__} is always trained from scratch "
            f"(there are weights for {known}); leave it at 'none'"
        )
    tensors = _read(source, flag)
    filled = traverse_util.flatten_dict(variables)
    missing, misfits, used = [], [], set()
    for layer in _TABLES[type(network)](network):
        for collection, variable, part in _PARTS[layer.kind]:
            names = [f"{name}.{part}" for name in layer.names]
            name = next((name for name in names if name in tensors), names[0])
            used.add(name)
            if layer.module[0] == HEAD and not head:
                continue
            path = (collection, *layer.module, variable)
            if name not in tensors:
                missing.append(f"{name} is missing (it belongs to {'/'.join(path)})")
                continue
            try:
                filled[path] = _converted(tensors[name], filled[path].shape)
            except ValueError as error:
                misfits.append(f"{name} {error}")
    left_over = [
        f"{name} is left over: {title(network)} has no such tensor"
        for name in sorted(tensors.keys() - used)
        if not name.endswith(_PASSED_OVER)
    ]
    problems = [*missing, *misfits, *left_over]
    if problems:
        summary = (
            f"{source} does not fit {title(network)}: give that network's weights as {flag}; "
            f"{len(missing)} missing, {len(misfits)} misshapen or not finite, "
            f"{len(left_over)} left over"
        )
        raise listed(summary, problems, shown=_LISTED)
    return traverse_util.unflatten_dict(filled)


def tensors(variables: PyTree, network: nn.Module) -> dict[str, np.ndarray]:
    """Returns the variables of a network as timm has them, by timm's names; `load` reads them.

    Args:
      variables: {"params", "batch_stats"} of arrays.
      network: whose variables they are.

    Raises:
      UserError: timm has no such network.
    """
    if type(network) not in _TABLES:
        known = ", ".join(sorted(kind.__name__ for kind in _TABLES))
        raise UserError(f"timm has no {type(network).__name__}; it has {known}")
    flat = traverse_util.flatten_dict(variables)
    found = {}
    for layer in _TABLES[type(network)](network):
        for collection, variable, part in _PARTS[layer.kind]:
            array = np.asarray(flat[collection, *layer.module, variable])
            back = np.argsort(_AXES[array.ndim])
            found[f"{layer.names[0]}.{part}"] = np.ascontiguousarray(array.transpose(back))
    return found


def efficientnet_lite(source: str, flag: str) -> tuple[EfficientNetLite, PyTree]:
    """Return the EfficientNet-Lite whose weights a file has, and its variables.

    Args:
      source: as in `load`.
      flag: where it was given, for messages.

    Returns:
      The network, for one class, and its variables as NumPy arrays, the head's all 0.

    Raises:
      UserError: the file cannot be had or read, or is that of no member; the message then compares
        it with Lite0.
    """
    tensors = _read(source, flag)
    network = lite(0, num_classes=1)
    for n, stages in enumerate(LITE):
        member = lite(n, num_classes=1)
        names = {f"{name}.weight" for layer in _efficientnet_lite(member) for name in layer.names}
        # Lite0 and Lite1 differ in depth, all others in the width of the last stage too.
        last = tensors.get("blocks.6.0.conv_pwl.weight", np.zeros(1))
        if names <= tensors.keys() and len(last) == stages[-1].features:
            network = member
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(
        lambda key, images: network.init(key, images, train=False), jax.random.key(0), images
    )
    variables = load(shapes, network, source, flag=flag)
    return network, jax.tree.map(
        lambda leaf: leaf if isinstance(leaf, np.ndarray) else np.zeros(leaf.shape, leaf.dtype),
        variables,
    )


def title(network: nn.Module) -> str:
    """Return what a network is called in messages and reports."""
    if isinstance(network, EfficientNetLite) and network.stages in LITE:
        return f"EfficientNet-Lite{LITE.index(network.stages)}"
    return type(network).__name__


def _converted(tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor in the variable's layout, float32.

    Raises:
      ValueError: shape, dtype or values do not fit; the message goes on from the tensor's name.
    """
    axes = _AXES[len(shape)]
    wanted = [shape[axes.index(axis)] for axis in range(len(shape))]
    if list(tensor.shape) != wanted:
        raise ValueError(f"is {list(tensor.shape)}, but the network takes {wanted}")
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise ValueError(f"is {tensor.dtype}, not floating point")
    with np.errstate(over="ignore"):
        values = tensor.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("holds NaN or infinite values")
    return np.ascontiguousarray(values.transpose(axes))


def _read(source: str, flag: str) -> dict[str, np.ndarray]:
    path = _fetch(source, flag) if source.startswith(HUB_PREFIX) else source
    file = expanded(path)
    if not file.is_file():
        raise UserError(
            f"{path}: there is no such file; {flag} is the path of a .safetensors or "
            f"{HUB_PREFIX}OWNER/NAME"
        )
    try:
        with file.open("rb") as opened:
            start = opened.read(2)
        if start in (b"PK", b"\x80\x02"):  # a zip archive or a pickle: what torch.save writes
            raise UserError(
                f"{path} is a PyTorch pickle, which may run any code when it is read: give the "
                f"same weights as a .safetensors in {flag}"
            )
        with safe_open(file, "numpy") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}): download it again, or give "
            f"another as {flag}"
        ) from error


def _fetch(source: str, flag: str) -> str:
    """The path of the hub's file in its cache on this machine, fetched where it is not there."""
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", source.removeprefix(HUB_PREFIX))
    if match is None:
        raise UserError(
            f"{source}: {flag} names a repository as {HUB_PREFIX}OWNER/NAME or "
            f"{HUB_PREFIX}OWNER/NAME@REVISION, such as {HUB_PREFIX}timm/resnet50.a1_in1k"
        )
    repository, revision = match.groups()
    page = f"https://huggingface.co/{repository}/resolve/{revision or 'main'}/{_HUB_FILE}"
    by_hand = f"download {page} yourself and give its path as {flag}"
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f"{source} needs huggingface_hub: pip install 'skin_jax[hub]', or {by_hand}"
        ) from error
    try:
        return huggingface_hub.hf_hub_download(repository, _HUB_FILE, revision=revision)
    except Exception as error:  # of many libraries, and for the user they are all the same
        reason = first_line(error)
        raise UserError(f"{source} cannot be downloaded ({reason}): {by_hand}") from error
