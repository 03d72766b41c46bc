"""A first try on procedural lesions, made on the spot: no data needed, a few minutes on a laptop.

python -m skin_jax.main --config configs/demo.py --workdir runs/demo

The semi-supervised GAN of `configs/sgan.py`, small, at 64x64, with class-balanced sampling and a
larger learning rate, because it takes few steps. With --config.data.dir=FOLDER it trains on that
folder instead.
"""

from ml_collections import ConfigDict

from skin_jax.config import for_variant
from skin_jax.tasks.declared import sgan


def get_config(variant: str = "") -> ConfigDict:
    config = sgan.defaults()
    config.data.demo_images = 2000
    config.data.image_size = 64
    config.data.sampling = "balanced"
    config.model.width = 24
    config.num_epochs = 24
    config.batch_size = 32
    config.optimizer.learning_rate = 5e-4
    return for_variant(config, variant, sgan.smoke)
