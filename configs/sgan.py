"""Paper A: the semi-supervised GAN whose discriminator is the classifier, at 224x224.

python -m skin_jax.main --config configs/sgan.py --workdir runs/sgan --config.data.dir=FOLDER

24 epochs at a learning rate of 1e-4, as the paper has it; Adam with b1 0.5, batches of 64 and
noise of length 128, which it leaves open. `docs/results.md` has what to expect.
"""

from ml_collections import ConfigDict

from skin_jax.config import base, for_variant


def get_config(variant: str = "") -> ConfigDict:
    config = base()
    config.task = "sgan"
    config.ema_decay = 0.0  # off

    config.model = ConfigDict()
    config.model.width = 64
    config.model.noise_size = 128
    config.model.generator_batch_norm = True
    config.model.discriminator_batch_norm = False

    config.loss = ConfigDict()
    config.loss.reading = "softmax"  # "separate"
    config.loss.generator = "non_saturating"  # "minimax" as printed, "feature_matching"
    config.loss.generated_images = "fake"  # "pseudo_label": confident ones train their class too
    config.loss.pseudo_label_from_epoch = 5
    config.loss.pseudo_label_threshold = 0.95
    config.loss.class_weights = "none"  # "balanced"
    config.loss.update = "sequential"  # "simultaneous"

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 1e-4
    config.optimizer.b1 = 0.5
    config.optimizer.b2 = 0.999
    config.optimizer.schedule = "constant"  # "cosine"
    config.optimizer.warmup_steps = 0

    config.augment = ConfigDict()
    return for_variant(config, variant)
