"""The training steps of skin_jax's tasks in PyTorch, written as one writes them there.

Channels-last where asked for; generated images are made once a step and detached for the
discriminator, whose parameters are frozen while the generator learns; fused optimisers; gradients
are set to None. The networks have our layers' names, so that weights can be copied by name.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from ml_collections import ConfigDict
from torch import nn

from benchmarks import parity

Array = np.ndarray[Any, Any]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Variant(NamedTuple):
    """How the same step is run."""

    channels_last: bool
    compiled: bool
    bf16: bool


class Step(NamedTuple):
    """A training step with its networks and data.

    run: noise [B, Z] of each GAN, None to draw it -> losses on the device, by our metrics' names.
    num_parameters: of all networks.
    """

    run: Callable[[Sequence[Array] | None], dict[str, torch.Tensor]]
    num_parameters: int


class Generator(nn.Module):
    """Noise [B, Z] to images [B, 3, S, S]: of both GANs.

    The first map has `side` pixels and channels[0] channels; each further entry of `channels`
    doubles it, and so does the image.
    """

    def __init__(self, noise_size: int, side: int, channels: Sequence[int]):
        super().__init__()
        self.layer1 = nn.ConvTranspose2d(noise_size, channels[0], side, bias=False)
        self.norm1 = nn.BatchNorm2d(channels[0])
        for i, (inputs, outputs) in enumerate(itertools.pairwise(channels), 2):
            self.add_module(f"layer{i}", nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False))
            self.add_module(f"norm{i}", nn.BatchNorm2d(outputs))
        self.depth = len(channels)
        self.add_module(f"layer{self.depth + 1}", nn.ConvTranspose2d(channels[-1], 3, 4, 2, 1))

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        """Return the images in [-1, 1]."""
        x = noise[:, :, None, None]
        for i in range(1, self.depth + 1):
            x = F.relu(getattr(self, f"norm{i}")(getattr(self, f"layer{i}")(x)), inplace=True)
        return torch.tanh(getattr(self, f"layer{self.depth + 1}")(x))


class Discriminator(nn.Module):
    """Images [B, 3, S, S] to logits [B, outputs]: of both GANs.

    `channels` are those of the convolutions; batch norm, where it is on, follows all but the first.
    """

    def __init__(self, image_size: int, channels: Sequence[int], outputs: int, batch_norm: bool):
        super().__init__()
        inputs = 3
        for i, features in enumerate(channels, 1):
            normed = batch_norm and i > 1
            conv = nn.Conv2d(inputs, features, 4, 2, 1, bias=not normed)
            self.add_module(f"layer{i}", conv)
            if normed:
                self.add_module(f"norm{i}", nn.BatchNorm2d(features))
            inputs = features
        self.depth = len(channels)
        side = image_size // 2**self.depth
        self.add_module(f"layer{self.depth + 1}", nn.Linear(side * side * inputs, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        for i in range(1, self.depth + 1):
            x = getattr(self, f"layer{i}")(x)
            if hasattr(self, f"norm{i}"):
                x = getattr(self, f"norm{i}")(x)
            x = F.leaky_relu(x, 0.2, inplace=True)
        # In our order of pixels and channels, which costs channels-last memory no copy.
        return getattr(self, f"layer{self.depth + 1}")(x.permute(0, 2, 3, 1).flatten(1))


class Classifier(nn.Module):
    """uint8 images [B, 3, S, S] to logits, normalised as pretrained networks take them."""

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.network = network
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, 255.0 * torch.tensor(values).view(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.network((images - self.mean) / self.std)[0]


def copy_weights(network: nn.Module, params: Mapping[str, Any]) -> None:
    """Copies parameters of our network into one of the two above."""
    own = dict(network.named_modules())
    copied = 0
    with torch.no_grad():
        for name, ours in params.items():
            module = own[name]
            for theirs, values in _tensors(module, {k: np.asarray(v) for k, v in ours.items()}):
                theirs.copy_(torch.from_numpy(np.array(values, order="C")))
                copied += theirs.numel()
    assert copied == _size(network)


def _tensors(module: nn.Module, ours: Mapping[str, Array]) -> list[tuple[nn.Parameter, Array]]:
    """The parameters of a module beside their values in PyTorch's layout."""
    if isinstance(module, nn.BatchNorm2d):
        return [(module.weight, ours["scale"]), (module.bias, ours["bias"])]
    kernel = ours["kernel"]
    if isinstance(module, nn.Linear):
        values = kernel.T
    elif isinstance(module, nn.Conv2d):
        values = kernel.transpose(3, 2, 0, 1)
    elif module.stride == (1, 1):
        values = kernel.transpose(0, 3, 1, 2)
    else:
        values = kernel[::-1, ::-1].transpose(2, 3, 0, 1)
    pairs = [(module.weight, values)]
    if module.bias is not None:
        pairs.append((module.bias, ours["bias"]))
    return pairs


def sgan(
    config: ConfigDict,
    params: Mapping[str, Any],
    images: Array,
    labels: Array,
    num_classes: int,
    variant: Variant,
) -> Step:
    """Paper A's step with the softmax reading and the non-saturating loss, without pseudo-labels.

    Args:
      config: of our run.
      params: {"generator", "discriminator"}, of ours.
      images: uint8 [B, S, S, 3].
      labels: int32 [B].
      num_classes: n, without "fake".
      variant: how it is run.
    """
    size, width = config.data.image_size, config.model.width
    g = Generator(config.model.noise_size, size // 16, [8 * width, 4 * width, 2 * width, width])
    d = Discriminator(
        size, [width, 2 * width, 4 * width, 8 * width], num_classes + 1, batch_norm=False
    )
    target = torch.from_numpy(labels).long().to(DEVICE)
    fake = torch.full_like(target, num_classes)

    def d_loss(on_real: torch.Tensor, on_generated: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(on_real, target) + F.cross_entropy(on_generated, fake)

    def g_loss(logits: torch.Tensor) -> torch.Tensor:
        return (logits.logsumexp(1) - logits[:, :-1].logsumexp(1)).mean()

    return _adversarial(config, params, g, d, images, d_loss, g_loss, variant, _normal)


def dcgan(
    config: ConfigDict, params: Sequence[Mapping[str, Any]], images: Array, variant: Variant
) -> Step:
    """The DCGANs of several classes, in turn.

    Args:
      config: of our run.
      params: {"generator", "discriminator"} of each class, of ours.
      images: uint8 [K, B, S, S, 3].
      variant: how it is run.
    """
    size, width = config.data.image_size, config.model.width
    doublings = int(math.log2(size // 4))
    channels = [width * 2**i for i in range(doublings)]

    def d_loss(on_real: torch.Tensor, on_generated: torch.Tensor) -> torch.Tensor:
        return _binary(on_real, 1.0) + _binary(on_generated, 0.0)

    def g_loss(logits: torch.Tensor) -> torch.Tensor:
        return _binary(logits, 1.0)

    steps = [
        _adversarial(
            config,
            weights,
            Generator(config.model.noise_size, 4, channels[::-1]),
            Discriminator(size, channels, 1, batch_norm=True),
            real,
            d_loss,
            g_loss,
            variant,
            _uniform,
        )
        for weights, real in zip(params, images, strict=True)
    ]

    def run(noise: Sequence[Array] | None) -> dict[str, torch.Tensor]:
        found = [step.run(None if noise is None else [noise[k]]) for k, step in enumerate(steps)]
        return {key: torch.stack([losses[key] for losses in found]) for key in found[0]}

    return Step(run, sum(step.num_parameters for step in steps))


def _adversarial(
    config: ConfigDict,
    params: Mapping[str, Any],
    g: nn.Module,
    d: nn.Module,
    images: Array,
    d_loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    g_loss_of: Callable[[torch.Tensor], torch.Tensor],
    variant: Variant,
    draw: Callable[[int, int], torch.Tensor],
) -> Step:
    copy_weights(g, params["generator"])
    copy_weights(d, params["discriminator"])
    real = _images(images, variant)
    g, d = _placed(g, variant), _placed(d, variant)
    settings = config.optimizer
    g_optimizer, d_optimizer = (
        torch.optim.Adam(
            network.parameters(),
            settings.learning_rate,
            betas=(settings.b1, settings.b2),
            fused=True,
        )
        for network in (g, d)
    )
    generate, judge = _compiled(g, variant), _compiled(d, variant)

    def run(noise: Sequence[Array] | None) -> dict[str, torch.Tensor]:
        if noise is None:
            z = draw(len(images), config.model.noise_size)
        else:
            z = torch.from_numpy(np.array(noise[0])).to(DEVICE)
        with _autocast(variant):
            generated = generate(z)
            d_loss = d_loss_of(judge(real.float() / 127.5 - 1.0), judge(generated.detach()))
        d_optimizer.zero_grad(set_to_none=True)
        d_loss.backward()
        d_optimizer.step()
        d.requires_grad_(False)
        with _autocast(variant):
            g_loss = g_loss_of(judge(generated))
        g_optimizer.zero_grad(set_to_none=True)
        g_loss.backward()
        g_optimizer.step()
        d.requires_grad_(True)
        return {"d_loss": d_loss.detach(), "g_loss": g_loss.detach()}

    return Step(run, _size(g) + _size(d))


def classifier(
    config: ConfigDict,
    network: nn.Module,
    task: Any,
    images: Array,
    labels: Array,
    variant: Variant,
) -> Step:
    """Fine-tuning with AdamW, in groups for the head and for what does not decay.

    Args:
      config: of our run.
      network: of `parity.torch_networks`.
      task: ours, for its network's normalisation.
      images: uint8 [B, S, S, 3].
      labels: int32 [B].
      variant: how it is run.
    """
    model = _placed(Classifier(network, task.network.mean, task.network.std), variant)
    settings = config.optimizer
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        in_head = name.startswith(("fc.", "classifier."))
        groups.setdefault((in_head, parameter.ndim > 1), []).append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": settings.learning_rate * (1.0 if in_head else settings.backbone_multiplier),
                "weight_decay": settings.weight_decay if decays else 0.0,
            }
            for (in_head, decays), parameters in groups.items()
        ],
        fused=True,
    )
    forward = _compiled(model, variant)
    real, target = _images(images, variant), torch.from_numpy(labels).long().to(DEVICE)

    def run(noise: Sequence[Array] | None) -> dict[str, torch.Tensor]:
        with _autocast(variant):
            loss = F.cross_entropy(
                forward(real), target, label_smoothing=config.loss.label_smoothing
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return {"loss": loss.detach()}

    return Step(run, _size(network))


def classifier_network(name: str, num_classes: int) -> nn.Module:
    """The full network of `parity.torch_networks`, with PyTorch's own random weights."""
    torch.manual_seed(0)
    return parity.torch_networks(num_classes)[name](**parity.SIZES[name][False])


def prepare(num_threads: int) -> None:
    """Settings of the process that a user of PyTorch chooses for speed."""
    torch.set_num_threads(num_threads)
    torch.backends.cudnn.benchmark = True
    if DEVICE.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as JAX has it


def wait() -> None:
    """Returns when the device has done all that it was asked to."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def _images(images: Array, variant: Variant) -> torch.Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2)).to(
        DEVICE, memory_format=_memory_format(variant), copy=True
    )


def _placed(network: nn.Module, variant: Variant) -> nn.Module:
    return network.to(DEVICE, memory_format=_memory_format(variant)).train()


def _compiled(network: nn.Module, variant: Variant) -> Callable[..., Any]:
    return torch.compile(network) if variant.compiled else network


def _memory_format(variant: Variant) -> torch.memory_format:
    return torch.channels_last if variant.channels_last else torch.contiguous_format


def _autocast(variant: Variant) -> torch.autocast:
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=variant.bf16)


def _binary(logits: torch.Tensor, target: float) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def _normal(batch: int, size: int) -> torch.Tensor:
    return torch.randn(batch, size, device=DEVICE)


def _uniform(batch: int, size: int) -> torch.Tensor:
    return 2.0 * torch.rand(batch, size, device=DEVICE) - 1.0


def _size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
