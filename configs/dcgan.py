"""Paper B: a DCGAN for each class, to balance the data set; all of them in one run, at 64x64.

python -m skin_jax.main --config configs/dcgan.py --workdir runs/dcgan --config.data.dir=FOLDER
python -m skin_jax.generate --workdir runs/dcgan --out runs/generated --balance_to 1000
python -m skin_jax.main --config configs/classifier.py --workdir runs/balanced
    --config.data.dir=FOLDER --config.data.synthetic=runs/generated

The settings of Radford et al. 2016 (`skin_jax.tasks.declared.dcgan` marks what is not theirs).
--config.classes="('mel','df')" trains some of the classes, --config.score.weights=FILE.safetensors
scores the generators by KID. `docs/results_generators.md` has what to expect.
"""

from ml_collections import ConfigDict

from skin_jax.config import for_variant
from skin_jax.tasks.declared import dcgan


def get_config(variant: str = "") -> ConfigDict:
    config = dcgan.defaults()
    config.num_steps = 10_000
    config.batch_size = 64
    config.data.image_size = 64
    return for_variant(config, variant, dcgan.smoke)
