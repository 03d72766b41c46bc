"""A class-conditional projected GAN at 64x64: one generator for all classes, made for few images.

python -m skin_jax.main --config configs/projected.py --workdir runs/projected
    --config.data.dir=FOLDER --config.model.weights=LITE0.safetensors
    --config.score.weights=LITE2.safetensors
python -m skin_jax.generate --workdir runs/projected --out runs/generated --balance_to 1000

LITE0 and LITE2 are EfficientNet-Lite0 and -Lite2 pretrained on ImageNet, such as
hf:timm/tf_efficientnet_lite0.in1k: the discriminators see images through one, the best generator is
chosen by the other. Widths, noise_size, batch and features_size are about half of what Sauer et al.
2021 have, for a CPU; on a GPU, leave them at their defaults.
"""

from ml_collections import ConfigDict

from skin_jax.config import for_variant
from skin_jax.tasks.declared import projected


def get_config(variant: str = "") -> ConfigDict:
    config = projected.defaults()
    config.num_steps = 5_000
    config.batch_size = 32
    config.data.image_size = 64
    config.eval_every_steps = 250
    config.model.width = 32
    config.model.discriminator_width = 32
    config.model.noise_size = 128
    config.model.features_size = 128
    return for_variant(config, variant, projected.smoke)
