"""Paper A's Table II over folds and seeds: the semi-supervised GAN beside ImageNet's networks.

python -m skin_jax.study --config configs/study_table2.py --workdir runs/table2
    --config.data.dir=FOLDER [--dry_run]

All arms take the same number of steps (about the paper's 24 epochs of HAM10000 in batches of 64)
and draw all classes equally often, as the networks' own files have it; in everything else each is
as its own file has it: configs/sgan.py, resnet50.py, densenet121.py, efficientnet_lite0.py.
DenseNet-121 is what the others are compared with, as in the paper, whose claim, that the GAN is
better, is to be confirmed.

The networks begin from scratch, and the report says so, unless their weights are given:

    --config.arms.densenet121.overrides.model.weights=FILE.safetensors      # or hf:timm/...

and so for resnet50 and efficientnet_lite0. At 224x224 this needs an accelerator;
--config.data.image_size=64 is for a laptop, and `:smoke` tries everything on procedural lesions in
a few minutes.

What to expect: 60 runs; `--dry_run` has the steps and, once some are done, the hours.
"""

from ml_collections import ConfigDict

from skin_jax.config import NO_WEIGHTS, base
from skin_jax.study.plan import arm, study

NETWORKS = {
    "resnet50": "ResNet-50",
    "densenet121": "DenseNet-121",
    "efficientnet_lite0": "EfficientNet-Lite0",
}


def get_config(variant: str = "") -> ConfigDict:
    suffix = f":{variant}" if variant else ""
    gan = f"configs/sgan.py{suffix}"

    config = study(base())
    config.control = "densenet121"
    config.confirmatory = "sgan"
    config.claims = ("A",)
    config.data.image_size = 224
    config.every_arm.num_steps = 2640
    config.every_arm.data.sampling = "balanced"
    if variant == "smoke":
        config.folds, config.seeds = (0, 1), (0,)
        config.data.image_size, config.data.demo_images = 32, 400
        config.every_arm.num_steps = 40

    config.arms.sgan = arm(gan, "semi-supervised GAN")
    config.arms.sgan_features = arm(
        gan, "semi-supervised GAN, feature matching", {"loss.generator": "feature_matching"}
    )
    config.arms.sgan_labels = arm(
        gan, "semi-supervised GAN, pseudo-labels", {"loss.generated_images": "pseudo_label"}
    )
    for name, title in NETWORKS.items():
        config.arms[name] = arm(f"configs/{name}.py{suffix}", title, {"model.weights": NO_WEIGHTS})
    return config
