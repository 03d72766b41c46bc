"""Paper A: the semi-supervised GAN whose discriminator is the classifier, at 224x224.

python -m skin_jax.main --config configs/sgan.py --workdir runs/sgan --config.data.dir=FOLDER

The settings of the paper (`skin_jax.tasks.declared.sgan` marks those that it leaves open).
`docs/results_generators.md` has what to expect.
"""

from ml_collections import ConfigDict

from skin_jax.config import for_variant
from skin_jax.tasks.declared import sgan


def get_config(variant: str = "") -> ConfigDict:
    config = sgan.defaults()
    config.num_epochs = 24
    config.batch_size = 64
    config.optimizer.learning_rate = 1e-4
    config.data.image_size = 224
    return for_variant(config, variant, sgan.smoke)
