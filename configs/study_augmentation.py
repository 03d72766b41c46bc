"""Does augmentation with generated images help? Paper B's comparison, over folds and seeds.

python -m skin_jax.study --config configs/study_augmentation.py --workdir runs/augmentation
    --config.data.dir=FOLDER [--dry_run]

One CNN (configs/classifier.py) with the same number of steps in every arm; the arms differ in where
the images of rarer classes come from. Each fold has DCGANs of its own, fitted on that fold's
training images, which fill every class up to `balance_to` images; oversampling repeats real images
to the same counts. `conventional`, which crops, flips and turns, is what the others are compared
with, and all but `original` do the same. `dcgan` differs from it in two things, equal classes and
generated images; from `oversampled` in the generated images alone.

--config.balance_to=N changes both ways of balancing, --config.every_arm.num_steps=N the length of
all runs, --config.steps.dcgan.overrides.num_steps=N that of the GANs. The variant `:ratios` adds
exploratory arms with a quarter of a generated image to two for each real one; `:smoke` tries
everything on procedural lesions in a few minutes.

What to expect: 60 runs and 5 GANs; `--dry_run` has the steps and, once some are done, the hours.
"""

from ml_collections import ConfigDict

from skin_jax.study.plan import arm, generation, load, study, training

RATIOS = (0.25, 0.5, 1.0, 2.0)
WITHOUT = {
    "augment.crop": 1.0,
    "augment.flip": False,
    "augment.rotate90": False,
    "augment.rotation": 0.0,
}
LAPTOP = {"model.width": 32, "batch_size": 32, "num_steps": 3500, "eval_every_steps": 250}


def get_config(variant: str = "") -> ConfigDict:
    suffix = f":{variant}" if variant not in ("", "ratios") else ""
    classifier = f"configs/classifier.py{suffix}"

    config = study(load(classifier))
    config.control = "conventional"
    config.confirmatory = "dcgan"
    config.isolating = "oversampled"
    config.claims = ("A", "B")
    config.balance_to = 1000
    config.data.image_size = 64
    config.every_arm.num_steps = 2000
    if variant == "smoke":
        config.folds, config.seeds = (0, 1), (0,)
        config.balance_to = 60
        config.data.image_size, config.data.demo_images = 32, 400
        config.every_arm.num_steps = 40

    config.steps.dcgan = training(
        f"configs/dcgan.py{suffix}", LAPTOP if variant != "smoke" else {"num_steps": 40}
    )
    config.steps.balanced = generation("dcgan")
    config.steps.balanced.balance_to = config.get_ref("balance_to")
    config.arms.original = arm(classifier, "no augmentation", WITHOUT)
    config.arms.conventional = arm(classifier, "conventional augmentation")
    config.arms.sampling = arm(classifier, "class-balanced sampling", {"data.sampling": "balanced"})
    config.arms.weighted = arm(
        classifier, "class-weighted loss", {"loss.class_weights": "balanced"}
    )
    config.arms.oversampled = arm(classifier, "real images repeated")
    config.arms.oversampled.overrides.data.oversample_to = config.get_ref("balance_to")
    config.arms.dcgan = arm(classifier, "images of DCGANs", needs="balanced")
    if variant == "ratios":
        config.steps.plenty = generation("dcgan", ratio=max(RATIOS))
        for ratio in RATIOS:
            config.arms[f"ratio_{ratio:g}".replace(".", "_")] = arm(
                classifier,
                f"images of DCGANs, {ratio:g} for each real one",
                {"data.synthetic_ratio": ratio},
                needs="plenty",
            )
    return config
