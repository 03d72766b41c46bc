"""Settings of the conditional projected GAN, with the defaults of Sauer et al. 2021.

What is not theirs is marked.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from skin_jax import config as config_lib
from skin_jax.base import settings
from skin_jax.base.settings import Setting, section
from skin_jax.config import COMMON
from skin_jax.tasks.declared import adam, augment, diffaugment, ema_decay, generator_score

NAME = "projected"

settings.declare(
    NAME,
    {
        "data.sampling": replace(COMMON["data.sampling"], default="power"),  # neither
        # The ramp is a share of the run: a longer one would have been another from the start.
        "num_epochs": replace(COMMON["num_epochs"], grows=False),
        "num_steps": replace(COMMON["num_steps"], grows=False),
    }
    | ema_decay(0.999)  # a half-life of 44,000 images at the default batch; theirs is 20,000
    | section(
        "model",
        width=Setting(
            64, "Channels of the generator: twice as many at 64x64, 16 times at 4x4.", low=1
        ),
        discriminator_width=Setting(
            64, "Channels of the first layer of the discriminators and projections.", low=1
        ),
        noise_size=Setting(256, "Length of the noise vector.", low=1, also=("latent_dim",)),
        weights=Setting(
            config_lib.NO_WEIGHTS,
            "EfficientNet-Lite0, through whose features the discriminators see images, as "
            "FILE.safetensors or hf:OWNER/NAME; none: random features, of little use.",
            also=("pretrained",),
        ),
        features_size=Setting(
            224, "Side of the images that EfficientNet-Lite0 sees, a multiple of 32.", low=128
        ),
        # Neither: Shahbazi et al. 2022.
        conditional_from=Setting(
            0.3, "Share of the run before which classes play no part.", low=0, high=1
        ),
        conditional_to=Setting(
            0.6, "Share of the run from which on classes play their full part.", low=0, high=1
        ),
    )
    | diffaugment(color=0.5, translation=0.125, cutout=0.2)  # theirs is 1; colour tells classes
    | generator_score()  # neither
    | adam(2e-4, b1=0.0, b2=0.99)
    | augment(),  # neither
)


def defaults() -> ConfigDict:
    """The configuration of Sauer et al. 2021, with classes."""
    return config_lib.base(NAME)


def smoke(config: ConfigDict) -> None:
    """Makes a run one of about a minute, in place."""
    config_lib.shrink(config)
    config.batch_size = 16
    config.model.width = config.model.discriminator_width = 8
    config.model.features_size = 128
    config.score.images = 50
