"""Settings of the semi-supervised GAN.

The defaults are those of Rashid et al., EMBC 2019; what the paper leaves open is marked.
"""

from ml_collections import ConfigDict

from skin_jax import config as config_lib
from skin_jax.base import settings
from skin_jax.base.settings import Setting, section
from skin_jax.tasks.declared import (
    adam,
    augment,
    class_weights,
    diffaugment,
    ema_decay,
    labelled_share,
)

NAME = "sgan"

settings.declare(
    NAME,
    ema_decay(0.0)
    | labelled_share()
    | section(
        "model",
        width=Setting(
            64, "Channels at half the resolution, doubled at each halving (open).", low=1
        ),
        noise_size=Setting(128, "Length of the noise vector (open).", low=1, also=("latent_dim",)),
        generator_batch_norm=Setting(True, "Batch norm in the generator (open)."),
        discriminator_batch_norm=Setting(False, "Batch norm in the discriminator (open)."),
        discriminator_spectral_norm=Setting(
            False, "Spectral norm of the discriminator's convolutions (open)."
        ),
        discriminator_kernel_size=Setting(
            4, "Side of the discriminator's kernels (open).", choices=(3, 4, 5)
        ),
        upsampled_image=Setting(
            False,
            "Bilinear upsampling and a 3x3 convolution for the last transposed convolution "
            "(beyond the paper).",
        ),
    )
    | section(
        "loss",
        reading=Setting(
            "softmax",
            "softmax: p(fake) is the last of n+1; separate: its own sigmoid.",
            choices=("softmax", "separate"),
        ),
        generator=Setting(
            "non_saturating",
            "Objective of the generator; the paper prints minimax.",
            choices=("minimax", "non_saturating", "feature_matching"),
        ),
        feature_matching=Setting(
            0.0, "Weight of feature matching next to another objective (beyond the paper).", low=0
        ),
        real_smoothing=Setting(
            0.0,
            'One-sided label smoothing: "not fake" has the target 1 - this for real images (open).',
            low=0,
            below=1,
        ),
        generated_images=Setting(
            "fake",
            "pseudo_label: confident ones also train their class.",
            choices=("fake", "pseudo_label"),
        ),
        pseudo_label_from_epoch=Setting(
            5, 'First epoch with pseudo-labels ("after a few epochs").', low=0
        ),
        pseudo_label_threshold=Setting(
            0.95, "Class probability from which an image is confident (open).", above=0, high=1
        ),
        updates=Setting(
            "sequential",
            "Whether the generator learns from the discriminator after its step, or before.",
            choices=("sequential", "simultaneous"),
        ),
    )
    | class_weights()
    | diffaugment(color=0.0, translation=0.0, cutout=0.0)  # beyond the paper: real and generated
    | adam(1e-4)  # its moments are open
    | augment(crop=0.8, rotation=15.0, blur_sigma=1.0, salt_and_pepper=0.01),
)


def defaults() -> ConfigDict:
    """The configuration of paper A."""
    return config_lib.base(NAME)


def smoke(config: ConfigDict) -> None:
    """Makes a run one of about a minute, in place."""
    config_lib.shrink(config)
    config.model.width = 8
    config.loss.pseudo_label_from_epoch = 0  # or they would not begin
