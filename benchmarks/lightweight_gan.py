"""PyTorch's lightweight-gan with its own defaults, on CPUs and for a given time.

python -m benchmarks.lightweight_gan --images=FOLDER --size=64 --minutes=60 --out=OUT

The package (pip install lightweight-gan==1.2.1 torch torchvision) asks for a GPU. Its networks, its
losses, its optimizers and its training step are used as they are; only what moves tensors to a GPU
is taken out. It has no classes. The minutes are processor time: those of two cores count twice.
Afterwards OUT holds images of its generator, in `last`, and of the average that it keeps, in `ema`.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

BATCH, ACCUMULATED = 10, 4  # the defaults of its command line
_DRAWN_AT_ONCE = 50


class _OnCpu:
    """The name `torch` of its module: each device is the CPU."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def device(self, _: str) -> torch.device:
        return torch.device("cpu")


def trainer(images: Path, size: int, folder: Path) -> Any:
    """Its Trainer with the defaults of its command line, without pictures on the way."""
    stay = lambda self, *args: self  # noqa: E731
    mock.patch.multiple(torch.Tensor, cuda=stay).start()
    mock.patch.multiple(nn.Module, cuda=stay).start()
    with mock.patch("torch.cuda.is_available", return_value=True):
        from lightweight_gan import lightweight_gan as package
    package.torch = _OnCpu()
    made = package.Trainer(
        name="peer",
        base_dir=folder,
        image_size=size,
        batch_size=BATCH,
        gradient_accumulate_every=ACCUMULATED,
        attn_res_layers=[32],
        disc_output_size=1,
        aug_types=["cutout", "translation"],
        save_every=10**9,
        num_workers=0,
        use_aim=False,
    )
    made.clear()
    made.set_data_src(images)
    made.evaluate = lambda *args, **kwargs: None
    return made


def trained_for(made: Any, seconds: float) -> None:
    """Trains until the process has used that much processor time; prints its progress."""
    start = time.process_time()
    while (used := time.process_time() - start) < seconds:
        made.train()  # for minutes
        seen = made.steps * BATCH * ACCUMULATED
        print(
            f"step {made.steps}  {seen} images seen  d_loss {made.d_loss:.3f}  "
            f"g_loss {made.g_loss:.3f}  {(seconds - used) / 60:.0f} min left",
            flush=True,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="PNGs to train with")
    parser.add_argument("--size", type=int, default=64, help="side of its images in pixels")
    parser.add_argument("--minutes", type=float, required=True, help="of processor time")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--drawn", type=int, default=500, help="images to draw")
    chosen = parser.parse_args(arguments)
    torch.manual_seed(0)
    made = trainer(chosen.images, chosen.size, chosen.out)
    trained_for(made, 60 * chosen.minutes)
    from torchvision.utils import save_image

    made.GAN.eval()
    for name, network in (("last", made.GAN.G), ("ema", made.GAN.GE)):
        (chosen.out / name).mkdir(exist_ok=True)
        for first in range(0, chosen.drawn, _DRAWN_AT_ONCE):
            with torch.no_grad():
                noise = torch.randn(_DRAWN_AT_ONCE, made.GAN.latent_dim)
                pictures = network(noise).clamp(0, 1)
            for number, picture in enumerate(pictures, first):
                save_image(picture, chosen.out / name / f"{number}.png")
    print(f"{made.steps} steps, {made.steps * BATCH * ACCUMULATED} images seen")


if __name__ == "__main__":
    main()
