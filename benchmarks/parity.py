"""The classifiers against independent PyTorch implementations with the same random weights.

python -m benchmarks.parity [--size 224] [--batch 4]: compares ResNet-50, DenseNet-121 and
EfficientNet-Lite0 and prints the largest errors (PyTorch: pip install 'skin_jax[parity]').

Where PyTorch and JAX are not in one environment: --write DIR in the one that has PyTorch, then
--compare DIR in the one that has JAX. --write tests/models/golden --tiny wrote the golden values
of the tests.

Compared are, in evaluation, logits and pooled features; after one forward pass in training, the
running statistics; and, of tiny networks, the gradients of the mean cross-entropy.

PyTorch's running variance takes the unbiased variance of the batch, ours (Flax's) the biased one:
with n values of a channel v_torch = (1 - m) v_0 + m n / (n - 1) v, so that
(1 - m) v_0 + (v_torch - (1 - m) v_0) (n - 1) / n is what ours must be.
"""

import argparse
import pathlib
import tempfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]

NUM_CLASSES = 10

# Sizes of each network: the default one, and a tiny one for golden values.
SIZES: dict[str, dict[bool, dict[str, Any]]] = {
    "resnet": {
        False: {"width": 64, "stages": (3, 4, 6, 3)},
        True: {"width": 3, "stages": (1, 2)},
    },
    "densenet": {
        False: {"growth": 32, "blocks": (6, 12, 24, 16)},
        True: {"growth": 4, "blocks": (2, 1)},
    },
    "efficientnet_lite": {
        False: {
            "stem": 32,
            "stages": (
                (1, 16, 1, 3, 1),
                (6, 24, 2, 3, 2),
                (6, 40, 2, 5, 2),
                (6, 80, 3, 3, 2),
                (6, 112, 3, 5, 1),
                (6, 192, 4, 5, 2),
                (6, 320, 1, 3, 1),
            ),
            "last": 1280,
        },
        True: {
            "stem": 8,
            "stages": ((1, 8, 1, 3, 1), (2, 8, 2, 3, 2), (2, 16, 1, 5, 2)),
            "last": 16,
        },
    },
}


def torch_networks(num_classes: int = NUM_CLASSES) -> dict[str, Callable[..., Any]]:
    """The networks in PyTorch, with timm's names; each gives logits and pooled features."""
    import torch
    import torch.nn.functional as F  # noqa: N812
    from torch import nn

    class Bottleneck(nn.Module):
        def __init__(self, inputs: int, width: int, stride: int):
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(4 * width)
            self.downsample = None
            if stride > 1 or inputs != 4 * width:
                self.downsample = nn.Sequential(
                    nn.Conv2d(inputs, 4 * width, 1, stride, bias=False),
                    nn.BatchNorm2d(4 * width),
                )

        def forward(self, x):
            y = F.relu(self.bn1(self.conv1(x)), inplace=True)
            y = F.relu(self.bn2(self.conv2(y)), inplace=True)
            y = self.bn3(self.conv3(y))
            return F.relu(y + (x if self.downsample is None else self.downsample(x)))

    class ResNet(nn.Module):
        def __init__(self, width: int, stages: tuple[int, ...]):
            super().__init__()
            self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            inputs = width
            for i, count in enumerate(stages):
                blocks = []
                for j in range(count):
                    blocks.append(Bottleneck(inputs, width * 2**i, 2 if i and not j else 1))
                    inputs = 4 * width * 2**i
                self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
            self.stages = len(stages)
            self.fc = nn.Linear(inputs, num_classes)

        def forward(self, x):
            x = F.max_pool2d(F.relu(self.bn1(self.conv1(x)), inplace=True), 3, 2, 1)
            for i in range(self.stages):
                x = getattr(self, f"layer{i + 1}")(x)
            pooled = x.mean((2, 3))
            return self.fc(pooled), pooled

    class DenseLayer(nn.Module):
        def __init__(self, inputs: int, growth: int):
            super().__init__()
            self.norm1 = nn.BatchNorm2d(inputs)
            self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(4 * growth)
            self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

        def forward(self, x):
            y = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
            return torch.cat([x, y], 1)

    class Transition(nn.Module):
        def __init__(self, inputs: int):
            super().__init__()
            self.norm = nn.BatchNorm2d(inputs)
            self.conv = nn.Conv2d(inputs, inputs // 2, 1, bias=False)

        def forward(self, x):
            return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2, 2)

    class DenseNet(nn.Module):
        def __init__(self, growth: int, blocks: tuple[int, ...]):
            super().__init__()
            self.features = nn.Sequential()
            channels = 2 * growth
            self.features.add_module("conv0", nn.Conv2d(3, channels, 7, 2, 3, bias=False))
            self.features.add_module("norm0", nn.BatchNorm2d(channels))
            self.features.add_module("relu0", nn.ReLU())
            self.features.add_module("pool0", nn.MaxPool2d(3, 2, 1))
            for i, count in enumerate(blocks, 1):
                block = nn.Sequential()
                for j in range(1, count + 1):
                    block.add_module(f"denselayer{j}", DenseLayer(channels, growth))
                    channels += growth
                self.features.add_module(f"denseblock{i}", block)
                if i < len(blocks):
                    self.features.add_module(f"transition{i}", Transition(channels))
                    channels //= 2
            self.features.add_module("norm5", nn.BatchNorm2d(channels))
            self.classifier = nn.Linear(channels, num_classes)

        def forward(self, x):
            pooled = F.relu(self.features(x)).mean((2, 3))
            return self.classifier(pooled), pooled

    class SameConv(nn.Conv2d):
        """TensorFlow's padding: what is odd comes below and to the right."""

        def forward(self, x):
            k, s = self.kernel_size[0], self.stride[0]
            h, w = (max((-(-size // s) - 1) * s + k - size, 0) for size in x.shape[2:])
            x = F.pad(x, (w // 2, w - w // 2, h // 2, h - h // 2))
            return F.conv2d(x, self.weight, None, self.stride, 0, 1, self.groups)

    def norm(channels: int):
        return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)

    class Separable(nn.Module):
        def __init__(self, inputs: int, outputs: int, k: int, stride: int):
            super().__init__()
            self.conv_dw = SameConv(inputs, inputs, k, stride, groups=inputs, bias=False)
            self.bn1 = norm(inputs)
            self.conv_pw = nn.Conv2d(inputs, outputs, 1, bias=False)
            self.bn2 = norm(outputs)
            self.skip = stride == 1 and inputs == outputs

        def forward(self, x):
            y = self.bn2(self.conv_pw(F.relu6(self.bn1(self.conv_dw(x)), inplace=True)))
            return x + y if self.skip else y

    class Inverted(nn.Module):
        def __init__(self, inputs: int, outputs: int, expansion: int, k: int, stride: int):
            super().__init__()
            width = inputs * expansion
            self.conv_pw = nn.Conv2d(inputs, width, 1, bias=False)
            self.bn1 = norm(width)
            self.conv_dw = SameConv(width, width, k, stride, groups=width, bias=False)
            self.bn2 = norm(width)
            self.conv_pwl = nn.Conv2d(width, outputs, 1, bias=False)
            self.bn3 = norm(outputs)
            self.skip = stride == 1 and inputs == outputs

        def forward(self, x):
            y = F.relu6(self.bn1(self.conv_pw(x)), inplace=True)
            y = self.bn3(self.conv_pwl(F.relu6(self.bn2(self.conv_dw(y)), inplace=True)))
            return x + y if self.skip else y

    class EfficientNetLite(nn.Module):
        def __init__(self, stem: int, stages: tuple[tuple[int, ...], ...], last: int):
            super().__init__()
            self.conv_stem = SameConv(3, stem, 3, 2, bias=False)
            self.bn1 = norm(stem)
            inputs, sequences = stem, []
            for expansion, outputs, repeats, k, stride in stages:
                blocks = []
                for j in range(repeats):
                    step = 1 if j else stride
                    if expansion == 1:
                        blocks.append(Separable(inputs, outputs, k, step))
                    else:
                        blocks.append(Inverted(inputs, outputs, expansion, k, step))
                    inputs = outputs
                sequences.append(nn.Sequential(*blocks))
            self.blocks = nn.Sequential(*sequences)
            self.conv_head = nn.Conv2d(inputs, last, 1, bias=False)
            self.bn2 = norm(last)
            self.classifier = nn.Linear(last, num_classes)

        def forward(self, x):
            x = self.blocks(F.relu6(self.bn1(self.conv_stem(x)), inplace=True))
            pooled = F.relu6(self.bn2(self.conv_head(x)), inplace=True).mean((2, 3))
            return self.classifier(pooled), pooled

    return {"resnet": ResNet, "densenet": DenseNet, "efficientnet_lite": EfficientNetLite}


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A random tensor, float16 values, of a scale that keeps activations near 1."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        values = rng.uniform(0.5, 1.5, shape)
    elif len(shape) > 1:
        values = rng.normal(size=shape) * (2.0 / np.prod(shape[1:])) ** 0.5
    elif name.endswith("weight"):
        values = rng.uniform(0.5, 1.0, shape)
    else:
        values = rng.normal(size=shape) * 0.1
    return values.astype(np.float16)


def torch_results(name: str, tiny: bool, images: np.ndarray) -> Arrays:
    """What PyTorch makes of uint8 images [B, H, W, 3]; the keys are what `errors` takes."""
    import torch

    network = torch_networks()[name](**SIZES[name][tiny])
    state = network.state_dict()
    weights = {k: draw(k, tuple(v.shape)) for k, v in state.items() if v.is_floating_point()}
    network.load_state_dict(
        {k: torch.from_numpy(v.astype(np.float32)) for k, v in weights.items()}, strict=False
    )
    mean, std = _expects(name)
    x = (images / np.float32(255) - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    x = torch.from_numpy(x.astype(np.float32).transpose(0, 3, 1, 2))
    results = {"images": images, **{f"weights/{k}": v for k, v in weights.items()}}
    network.eval()
    with torch.no_grad():
        logits, pooled = network(x)
    results |= {"logits": logits.numpy(), "pooled": pooled.numpy()}

    norms = {k: m for k, m in network.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    counts: dict[str, int] = {}
    for key, module in norms.items():
        module.register_forward_hook(
            lambda _, inputs, __, key=key: counts.update({key: inputs[0][:, 0].numel()})
        )
    network.train()
    labels = torch.arange(len(images)) % NUM_CLASSES
    torch.nn.functional.cross_entropy(network(x)[0], labels).backward()
    for key, module in norms.items():
        results[f"after/{key}.running_mean"] = module.running_mean.numpy()
        results[f"after/{key}.running_var"] = module.running_var.numpy()
        results[f"counts/{key}"] = np.asarray(counts[key])
    gradients = {k: p.grad.numpy() for k, p in network.named_parameters()}
    return results | {f"gradients/{k}": v for k, v in gradients.items()}


def _expects(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if name == "efficientnet_lite":
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    return (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def jax_network(name: str, tiny: bool) -> Any:
    """Our network of the same sizes."""
    from skin_jax.models.densenet import DenseNet
    from skin_jax.models.efficientnet_lite import EfficientNetLite, Stage
    from skin_jax.models.resnet import ResNet

    sizes = SIZES[name][tiny]
    if name == "resnet":
        multiplier = sizes["width"] / 64
        return ResNet(NUM_CLASSES, width_multiplier=multiplier, stage_sizes=sizes["stages"])
    if name == "densenet":
        multiplier = sizes["growth"] / 32
        return DenseNet(NUM_CLASSES, width_multiplier=multiplier, block_sizes=sizes["blocks"])
    return EfficientNetLite(
        NUM_CLASSES,
        stages=tuple(Stage(*stage) for stage in sizes["stages"]),
        stem_features=sizes["stem"],
        last_features=sizes["last"],
    )


def flax_variables(variables: Any, network: Any, tensors: Arrays) -> Any:
    """PyTorch's tensors as our network's variables, by the way that pretrained weights take.

    Args:
      variables: of the network: arrays or `jax.ShapeDtypeStruct`s.
      network: ours.
      tensors: all of PyTorch's network, by its names.
    """
    from safetensors.numpy import save_file

    from skin_jax.models import pretrained

    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, file.name)
        return pretrained.load(variables, network, file.name, head=True)


def errors(name: str, tiny: bool, results: Arrays, *, gradients: bool) -> dict[str, float]:
    """The largest differences of our network from PyTorch's results.

    Returns:
      Absolute ones of logits, pooled, mean and var (running, after one pass in training);
      gradients: each by the largest of its tensor, or by a hundredth of the largest of all where
      that is more: some are 0 but for rounding, those of a bias that a later batch norm removes.
      Only tiny networks are near: through the full ones float32 rounding grows to a tenth, in
      PyTorch too (its float32 and float64 gradients differ by 0.13 to 0.17 at 224x224).
    """
    import jax
    import jax.numpy as jnp

    from skin_jax.base.devices import compiler_options

    network = jax_network(name, tiny)
    x = results["images"].astype(np.float32) / np.float32(127.5) - 1.0
    labels = np.arange(len(x)) % NUM_CLASSES
    shapes = jax.eval_shape(lambda key: network.init(key, x, train=True), jax.random.key(0))

    def section(prefix: str) -> Arrays:
        return {k.removeprefix(prefix): v for k, v in results.items() if k.startswith(prefix)}

    weights = section("weights/")
    variables = flax_variables(shapes, network, weights)
    options = compiler_options(jax.devices()[0].platform)

    def loss(params: Any) -> tuple[jax.Array, Any]:
        out, updated = network.apply(
            {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
        )
        return -jnp.mean(jax.nn.log_softmax(out.logits)[jnp.arange(len(x)), labels]), updated

    evaluate = jax.jit(lambda v: network.apply(v, x, train=False), compiler_options=options)
    out = evaluate(variables)
    step = jax.grad(loss, has_aux=True) if gradients else loss
    slopes, updated = jax.jit(step, compiler_options=options)(variables["params"])

    kept = 0.99 if name == "efficientnet_lite" else 0.9
    after = section("after/")
    for key, n in section("counts/").items():
        old = kept * weights[f"{key}.running_var"].astype(np.float32)
        after[f"{key}.running_var"] = old + (after[f"{key}.running_var"] - old) * (n - 1) / n
    expected = flax_variables(shapes, network, weights | after)["batch_stats"]

    def largest(ours: Any, theirs: Any, relative: bool = False) -> float:
        least = max(np.max(np.abs(b)) for b in jax.tree.leaves(theirs)) / 100

        def one(a: Any, b: Any) -> float:
            scale = max(np.max(np.abs(b)), least) if relative else 1.0
            return float(np.max(np.abs(a - b)) / scale)

        # NumPy's maximum, because Python's may pass over a NaN.
        return float(np.max(jax.tree.leaves(jax.tree.map(one, ours, theirs))))

    def statistic(tree: Any, which: str) -> list[Any]:
        leaves = jax.tree.leaves_with_path(tree)
        return [leaf for path, leaf in leaves if path[-1].key == which]

    ours = updated["batch_stats"]
    found = {
        "logits": largest(out.logits, results["logits"]),
        "pooled": largest(out.pooled, results["pooled"]),
        "mean": largest(statistic(ours, "mean"), statistic(expected, "mean")),
        "var": largest(statistic(ours, "var"), statistic(expected, "var")),
    }
    if gradients:
        theirs = flax_variables(shapes, network, weights | section("gradients/"))["params"]
        found["gradients"] = largest(slopes, theirs, relative=True)
    return found


def main() -> None:
    """Write PyTorch's results, compare with them, or both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--compare", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=4)
    arguments = parser.parse_args()
    for name in SIZES:
        if arguments.compare:
            with np.load(arguments.compare / f"{name}.npz") as file:
                results = dict(file)
        else:
            S = arguments.size
            shape = (2, 37, 41, 3) if arguments.tiny else (arguments.batch, S, S, 3)
            images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
            results = torch_results(name, arguments.tiny, images)
        if arguments.write:
            arguments.write.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(arguments.write / f"{name}.npz", **results)
        else:
            found = errors(name, arguments.tiny, results, gradients=arguments.tiny)
            largest = {k: float(np.abs(results[k]).max()) for k in ("logits", "pooled")}
            print(name, {k: f"{v:.1e}" for k, v in found.items()}, f"largest values: {largest}")


if __name__ == "__main__":
    main()
