"""EfficientNet-Lite0 with more of what is known to help, for longer: about 40 minutes of 2 cores.

python -m skin_jax.main --config configs/recipe.py --workdir runs/recipe --config.data.dir=FOLDER

5 epochs of images of 128x128, 9 of 192x192. The weights are those of `efficientnet_lite0.py`; give
a file with --config.model.weights=FILE.safetensors. docs/results_classifiers.md has what each part
brings.

What to expect: two lines that say that a program is compiled, at the start and when the images
grow, and one line of validation scores an epoch.
"""

from ml_collections import ConfigDict

from skin_jax.config import for_variant
from skin_jax.tasks.declared import classifier


def get_config(variant: str = "") -> ConfigDict:
    config = classifier.defaults()
    config.num_epochs = 14
    config.batch_size = 32
    config.best_by = "macro_auc"
    config.data.image_size = 192
    config.growth.sizes = (128, 192)
    config.growth.epochs = (5.0,)
    config.model.name = "efficientnet_lite0"
    config.model.weights = "hf:timm/tf_efficientnet_lite0.in1k"
    config.model.dropout = 0.2
    config.data.sampling = "power"
    config.loss.logit_adjustment = 1.0
    config.loss.label_smoothing = 0.0  # with the adjustment, it predicts rare classes too often
    config.optimizer.learning_rate = 1e-3  # of the head
    config.optimizer.backbone_multiplier = 0.3
    config.optimizer.layer_decay = 0.8
    config.optimizer.weight_decay = 0.05
    config.optimizer.warmup_steps = 130  # an epoch
    config.augment.rotation = 180.0
    config.augment.brightness = config.augment.contrast = config.augment.saturation = 0.2
    config.augment.hue = 6.0
    return for_variant(config, variant, classifier.smoke)
