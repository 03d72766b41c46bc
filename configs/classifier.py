"""Paper B's classifier: the same CNN with and without generated images, from scratch at 64x64.

python -m skin_jax.main --config configs/classifier.py --workdir runs/real --config.data.dir=FOLDER
python -m skin_jax.main --config configs/classifier.py --workdir runs/generated
    --config.data.dir=FOLDER --config.data.synthetic=GENERATED

GENERATED is a folder of `skin_jax.generate`, of a generator that was trained on the same split;
--config.data.synthetic_ratio=R takes at most R of its images for each real one of a class. The
controls, in the place of generated images:

    --config.data.oversample_to=N          repeats the real images of rarer classes to N
    --config.data.sampling=balanced        draws every class equally often
    --config.loss.class_weights=balanced   weighs the rarer classes more

Every run takes as many steps, and is evaluated on the same real images.

What to expect: one line of validation scores an epoch; on two cores about a minute an epoch.
"""

from ml_collections import ConfigDict

from skin_jax.config import for_variant
from skin_jax.tasks.declared import classifier


def get_config(variant: str = "") -> ConfigDict:
    config = classifier.defaults()
    config.num_epochs = 40
    config.ema_decay = 0.99
    config.data.image_size = 64
    config.model.name = "cnn"
    config.model.dropout = 0.3
    config.loss.label_smoothing = 0.0
    config.optimizer.learning_rate = 1e-3
    config.optimizer.backbone_multiplier = 1.0  # everything is new
    config.optimizer.weight_decay = 0.05
    return for_variant(config, variant, classifier.smoke)
