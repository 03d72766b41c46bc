"""A first try on procedural lesions, made on the spot: no data needed, a few minutes on a laptop.

python -m skin_jax.main --config configs/demo.py --workdir runs/demo

The semi-supervised GAN of `configs/sgan.py`, small, at 64x64, with class-balanced sampling and a
larger learning rate, because the demo sees far fewer images. With --config.data.dir=FOLDER it
trains on that folder instead.
"""

from ml_collections import ConfigDict

from configs import sgan


def get_config(variant: str = "") -> ConfigDict:
    config = sgan.get_config()
    return config
