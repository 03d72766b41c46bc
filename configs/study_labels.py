"""Few labels, many images: does an adversarial loss on images without a label help a classifier?

python -m skin_jax.study --config configs/study_labels.py --workdir runs/labels_10
    --config.data.dir=FOLDER [--config.data.label_fraction=0.1] [--dry_run]

Paper A's discriminator learns from the labelled tenth of the training lesions, in three ways: from
these alone; in the semi-supervised GAN, in which all other training images are examples of "not
fake"; and with its own confident predictions on them (self-training), without which a gain of the
GAN would prove nothing. Each step has 32 labelled images and, but for the first way, 32 others; the
number of steps, the augmentation, the learning rate and the average of the weights are the same.
That the GAN is better than labelled images alone is to be confirmed.

Other fractions go into a work folder of their own; the labels of 5 % are among those of 10 %.
--config.data.demo_images=2000 takes procedural lesions in the place of a folder. `:smoke` tries
everything on some of them in a few minutes.

What to expect: 30 runs; `--dry_run` has the steps and, once some are done, the hours.
"""

from ml_collections import ConfigDict

from skin_jax.config import base
from skin_jax.study.plan import arm, study

LABELLED = 32  # in a batch
CLASSIFIER = {
    "model.name": "discriminator",
    "model.dropout": 0.0,
    "loss.label_smoothing": 0.0,
    "optimizer.learning_rate": 1e-4,
    "optimizer.schedule": "constant",
    "optimizer.warmup_steps": 0,
    "optimizer.weight_decay": 0.0,
    "augment.crop": 0.8,
    "augment.rotation": 15.0,
    "augment.blur_sigma": 1.0,
    "augment.salt_and_pepper": 0.01,
}


def get_config(variant: str = "") -> ConfigDict:
    suffix = f":{variant}" if variant else ""
    config = study(base())
    config.control = "supervised"
    config.confirmatory = "sgan"
    config.data.image_size = 64
    config.data.label_fraction = 0.1
    config.every_arm.num_steps = 3000
    config.every_arm.ema_decay = 0.999
    labelled, both = LABELLED, {"batch_size": 2 * LABELLED}
    if variant == "smoke":
        config.folds, config.seeds = (0, 1), (0,)
        config.data.image_size, config.data.demo_images = 32, 400
        config.data.label_fraction = 0.5
        config.every_arm.num_steps = 40
        labelled, both = 8, {"batch_size": 16}

    classifier = f"configs/classifier.py{suffix}"
    config.arms.supervised = arm(
        classifier, "labelled images alone", CLASSIFIER | {"batch_size": labelled}
    )
    config.arms.sgan = arm(f"configs/sgan.py{suffix}", "semi-supervised GAN", both)
    config.arms.self_training = arm(
        classifier, "self-training", CLASSIFIER | both | {"loss.self_training": 1.0}
    )
    return config
