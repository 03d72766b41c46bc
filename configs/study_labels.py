"""Few labels, many images: does an adversarial loss on images without a label help a classifier?

python -m skin_jax.study --config configs/study_labels.py --workdir runs/labels
    --config.data.dir=FOLDER [--dry_run]

Paper A's discriminator learns from 5, 10, 25 and 100 % of the labels, in three ways: from the
labelled images alone; in the semi-supervised GAN, in which all other training images are examples
of "not fake"; and with its own confident predictions on them (self-training), without which a gain
of the GAN would prove nothing. Each step has as many labelled images and, but for the first way, as
many others; steps, augmentation, learning rate and average of the weights are the same. That the
GAN is better than labelled images alone is to be confirmed at 10 % of the labels. The labels of 5 %
are among those of 10 %; with all labels there is nothing left for self-training.

--config.data.demo_images=2000 takes procedural lesions in the place of a folder. `:smoke` tries
everything on some of them in a few minutes.

What to expect: 110 runs; `--dry_run` has the steps and, once some are done, the hours.
"""

from ml_collections import ConfigDict

from skin_jax.config import base
from skin_jax.study.plan import arm, level, study

LABELLED = 16  # in a batch
RATE = {"optimizer.learning_rate": 1e-3}
CLASSIFIER = RATE | {
    "model.name": "discriminator",
    "model.width_multiplier": 0.5,
    "model.dropout": 0.0,
    "loss.label_smoothing": 0.0,
    "optimizer.schedule": "constant",
    "optimizer.warmup_steps": 0,
    "optimizer.weight_decay": 0.0,
    "augment.crop": 0.8,
    "augment.rotation": 15.0,
    "augment.blur_sigma": 1.0,
    "augment.salt_and_pepper": 0.01,
}
SHARES = {"labels_5": 0.05, "labels_10": 0.1, "labels_25": 0.25, "labels_100": 1.0}


def get_config(variant: str = "") -> ConfigDict:
    suffix = f":{variant}" if variant else ""
    config = study(base())
    config.control = "supervised"
    config.confirmatory = "sgan"
    config.isolating = "self_training"
    config.confirmatory_level = "labels_10"
    config.axis = "labelled lesions in train, %"
    config.data.image_size = 32
    config.data.sampling = "balanced"
    config.every_arm.num_steps = 1500
    config.every_arm.eval_every_steps = 150
    config.every_arm.ema_decay = 0.995
    labelled, shares, width = LABELLED, dict(SHARES), {"model.width": 32}
    if variant == "smoke":
        config.folds, config.seeds = (0, 1), (0,)
        config.data.demo_images = 400
        config.every_arm.num_steps = config.every_arm.eval_every_steps = 40
        config.confirmatory_level = "labels_50"
        labelled, shares, width = 8, {"labels_50": 0.5, "labels_100": 1.0}, {}

    both = {"batch_size": 2 * labelled}
    for name, share in shares.items():
        # Without other images, a batch of the GAN is its labelled half.
        alone = {"batch_size": labelled} if share == 1.0 else {}
        config.levels[name] = level(
            100 * share, f"{100 * share:g} % of the labels", {"data.label_fraction": share, **alone}
        )

    classifier = f"configs/classifier.py{suffix}"
    config.arms.supervised = arm(
        classifier, "labelled images alone", CLASSIFIER | {"batch_size": labelled}
    )
    config.arms.sgan = arm(f"configs/sgan.py{suffix}", "semi-supervised GAN", RATE | width | both)
    config.arms.self_training = arm(
        classifier,
        "self-training",
        CLASSIFIER | both | {"loss.self_training": 1.0},
        levels=[name for name, share in shares.items() if share < 1.0],
    )
    return config
