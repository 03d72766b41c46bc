"""Do generated images help where real ones are few? Thirty images of each class, drawn repeatedly.

python -m skin_jax.study --config configs/study_few_images.py --workdir runs/few
    --config.data.dir=FOLDER --config.every_arm.model.weights=LITE0.safetensors
    --config.steps.gan.overrides.model.weights=LITE0.safetensors
    --config.steps.gan.overrides.score.weights=LITE2.safetensors [--dry_run]

EfficientNet-Lite0, pretrained on ImageNet, is fine-tuned with 30 lesions of each class, takes its
checkpoint by 10 more, and is tested on all others; each subset draws these lesions anew. Its arms
have the same number of steps and the same conventional augmentation. They differ in what stands
next to the real images: the same ones repeated, three images for each of them by a projected GAN
that was fitted on the subset alone, such images chosen by a classifier of the same subset, or
mixtures of the real images in the batch (mixup). That chosen generated images are better than
repeated real ones is to be confirmed.

`:smoke` tries everything on procedural lesions in a few minutes. --config.subsets="(0,1,2)" takes
fewer subsets.

What to expect: 48 runs and 12 GANs; `--dry_run --estimate` times a few steps of each.
"""

from ml_collections import ConfigDict

from skin_jax.study.plan import arm, generation, load, study, training

RATIO = 3  # generated images for each real one
FEW = (30, 10)  # lesions of each class in train and val


def get_config(variant: str = "") -> ConfigDict:
    suffix = f":{variant}" if variant else ""
    classifier = f"configs/efficientnet_lite0.py{suffix}"
    config = study(load(classifier))
    config.control = "oversampled"
    config.confirmatory = "filtered"
    config.subsets, config.seeds = tuple(range(12)), (0,)
    config.data.split_counts = train, _ = FEW
    config.every_arm.data.image_size = 96
    config.every_arm.data.sampling = "natural"
    config.every_arm.batch_size = 32
    config.every_arm.num_steps = 400
    config.every_arm.eval_every_steps = 50
    gan = {"data.image_size": 64, "num_steps": 1000, "eval_every_steps": 100}
    if variant == "smoke":
        config.subsets = (0, 1)
        config.data.demo_images, config.data.split_counts = 400, (4, 2)
        train, gan = 4, {"num_steps": 20, "eval_every_steps": 20}
        config.every_arm.data.image_size = 32
        config.every_arm.num_steps = config.every_arm.eval_every_steps = 20
        config.every_arm.batch_size = 16

    config.steps.gan = training(f"configs/projected.py{suffix}", gan)
    config.steps.drawn = generation("gan", ratio=RATIO)
    config.steps.chosen = generation("gan", ratio=RATIO, filter="oversampled")
    repeated = {"data.oversample_to": (1 + RATIO) * train}
    config.arms.oversampled = arm(classifier, "real images repeated", repeated)
    config.arms.generated = arm(classifier, "generated images", needs="drawn")
    config.arms.filtered = arm(classifier, "generated images that were chosen", needs="chosen")
    config.arms.mixup = arm(
        classifier, "mixup of real images", repeated | {"loss.mixup": 0.2, "loss.cutmix": 0.0}
    )
    return config
