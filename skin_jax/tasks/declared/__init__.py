"""Settings of the tasks, declared without importing JAX; here, the sections that several share."""

import dataclasses

from skin_jax.base.settings import Setting, section
from skin_jax.config import NO_WEIGHTS


def ema_decay(default: float) -> dict[str, Setting]:
    """The averaged weights."""
    help = "Decay of the averaged weights that predict and generate; 0.0: off."
    return {"ema_decay": Setting(default, help, low=0, below=1, also=("ema",))}


def class_weights() -> dict[str, Setting]:
    """The weights of classes in a supervised loss."""
    help = "balanced: each class has the same weight in the loss; none: each image."
    return {"loss.class_weights": Setting("none", help, choices=("none", "balanced"))}


def labelled_share() -> dict[str, Setting]:
    """The composition of a batch where some training images have no label."""
    help = "Share of a batch that has labels, where some training images have none."
    return {"data.labelled_share": Setting(0.5, help, above=0, below=1)}


def learning_rate(default: float, schedule: str, warmup_steps: int) -> dict[str, Setting]:
    """The settings of `optimizers.learning_rate`."""
    return section(
        "optimizer",
        learning_rate=Setting(default, "Learning rate after the warm-up.", above=0, also=("lr",)),
        schedule=Setting(
            schedule,
            "cosine: the learning rate falls to 0 at the end of the run.",
            choices=("constant", "cosine"),
        ),
        warmup_steps=Setting(
            warmup_steps, "Steps of linear warm-up of the learning rate.", low=0, also=("warmup",)
        ),
    )


def adam(default: float, b1: float = 0.5, b2: float = 0.999) -> dict[str, Setting]:
    """The settings of `optimizers.make`; the defaults of b1 and b2 are those of Radford et al."""
    return learning_rate(default, "constant", 0) | section(
        "optimizer",
        b1=Setting(b1, "Decay of Adam's first moment.", low=0, below=1, also=("beta1", "betas")),
        b2=Setting(b2, "Decay of Adam's second moment.", low=0, below=1, also=("beta2",)),
    )


def generator_score() -> dict[str, Setting]:
    """What `eval.evaluators.Generators` scores generators by, and how often they are kept."""
    return {
        "keep_generators_every": Setting(
            10, "Evaluations between generators that are kept (skin_jax.generate --step).", low=1
        )
    } | section(
        "score",
        weights=Setting(
            NO_WEIGHTS,
            "An EfficientNet-Lite as FILE.safetensors or hf:OWNER/NAME: scores are KIDs; none: "
            "they are sliced Wasserstein distances.",
        ),
        images=Setting(
            500, "Generated images of each class in a score, and most of the real ones.", low=2
        ),
    )


def diffaugment(color: float, translation: float, cutout: float) -> dict[str, Setting]:
    """The fields of `diffaugment.DiffAugment`."""
    return section(
        "diffaugment",
        color=Setting(color, "Strength of the changes of colour; the paper's is 1.", low=0),
        translation=Setting(
            translation,
            "Largest shift, as a share of the side; the paper's is 0.125.",
            low=0,
            below=1,
        ),
        cutout=Setting(
            cutout,
            "Side of the square that is cut out, as a share; the paper's is 0.5.",
            low=0,
            below=1,
        ),
    )


def augment(**defaults: float) -> dict[str, Setting]:
    """The fields of `augment.Augmentation`; flips and turns are on: a lesion has no upper side."""
    found = section(
        "augment",
        crop=Setting(
            1.0,
            "Smallest side of the random crop, as a share of the image's; 1.0: no crop.",
            above=0,
            high=1,
        ),
        flip=Setting(True, "Mirror each axis with probability 1/2."),
        rotate90=Setting(True, "Turn by a random multiple of 90 degrees."),
        rotation=Setting(0.0, "Largest random turn in degrees.", low=0, high=180),
        blur_sigma=Setting(
            0.0, "Largest standard deviation of the blur in pixels; 0.0: no blur.", low=0
        ),
        blur_probability=Setting(0.5, "Share of the images that are blurred.", low=0, high=1),
        salt_and_pepper=Setting(
            0.0, "Share of the pixels that become black or white.", low=0, high=1
        ),
        salt_and_pepper_probability=Setting(
            0.5, "Share of the images that get this noise.", low=0, high=1
        ),
        shear=Setting(0.0, "Largest random shear, as columns per row.", low=0, high=1),
        brightness=Setting(0.0, "Largest change of the brightness, as a share.", low=0, below=1),
        contrast=Setting(0.0, "Largest change of the contrast, as a share.", low=0, below=1),
        saturation=Setting(0.0, "Largest change of the saturation, as a share.", low=0, below=1),
        hue=Setting(0.0, "Largest random turn of the hue in degrees.", low=0, high=180),
        erase=Setting(
            0.0, "Share of the images of which a random rectangle becomes grey.", low=0, high=1
        ),
    )
    for name, default in defaults.items():
        key = f"augment.{name}"
        found[key] = dataclasses.replace(found[key], default=default)
    return found
