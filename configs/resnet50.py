"""ResNet-50, fine-tuned from ImageNet at 224x224: a baseline of paper A.

python -m skin_jax.main --config configs/resnet50.py --workdir runs/resnet50
    --config.data.dir=FOLDER

The weights come from huggingface.co (with the extra `skin_jax[hub]`), or from a file with
--config.model.weights=FILE.safetensors; "none" trains from scratch, and :smoke needs none.
Paper A's baselines also had salt-and-pepper noise: --config.augment.salt_and_pepper=0.01.

What to expect: one line of validation scores an epoch, and a training loss that stays above 0.44,
the entropy of the smoothed labels. `python -m skin_jax.eval.baselines --workdir runs/resnet50`
then says what a logistic regression on the same weights' features reaches without fine-tuning.
"""

from ml_collections import ConfigDict

from skin_jax.config import for_variant
from skin_jax.tasks.declared import classifier


def get_config(variant: str = "") -> ConfigDict:
    config = classifier.defaults()
    config.model.name = "resnet50"
    config.model.weights = "hf:timm/resnet50.a1_in1k"
    config.data.sampling = "balanced"
    return for_variant(config, variant, classifier.smoke)
