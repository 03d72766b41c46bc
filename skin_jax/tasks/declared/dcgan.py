"""Settings of the DCGANs, one a class, with the defaults of Radford et al. 2016.

Paper B takes them as they are; what neither has is marked. A batch holds `batch_size` images of
each class, and an epoch is a pass over the largest of the chosen classes.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from skin_jax import config as config_lib
from skin_jax.base import settings
from skin_jax.base.settings import Setting, section
from skin_jax.config import COMMON
from skin_jax.tasks.declared import adam, augment, ema_decay, generator_score

NAME = "dcgan"

settings.declare(
    NAME,
    {
        "eval_every_steps": replace(
            COMMON["eval_every_steps"],
            default=250,
            help="Steps between evaluations, the same for any choice of classes.",
        ),
        "data.sampling": replace(COMMON["data.sampling"], choices=("natural",)),
        "classes": Setting((), "Classes that get a GAN; empty: all of the run.", str),
        "stack": Setting(
            "auto",
            "How the classes share a program. vmap: each operation runs once for all; unroll: the "
            "classes run one after another.",
            choices=("auto", "vmap", "unroll"),
        ),
    }
    | ema_decay(0.999)  # neither
    | section(
        "model",
        width=Setting(64, "Channels at half the resolution, doubled at each halving.", low=1),
        noise_size=Setting(100, "Length of the noise vector.", low=1, also=("latent_dim",)),
    )
    | generator_score()
    | adam(2e-4)
    | augment(),  # neither
)


def defaults() -> ConfigDict:
    """The configuration of Radford et al. 2016 and paper B."""
    return config_lib.base(NAME)


def smoke(config: ConfigDict) -> None:
    """Makes a run one of about a minute, in place."""
    config_lib.shrink(config)
    config.model.width = 8
    config.score.images = 50
