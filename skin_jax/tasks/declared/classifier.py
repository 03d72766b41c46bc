"""Settings of a classifier, with defaults for fine-tuning; `configs/` names the networks."""

from dataclasses import replace

from ml_collections import ConfigDict

from skin_jax import config as config_lib
from skin_jax.base import settings
from skin_jax.base.settings import Setting, section
from skin_jax.config import COMMON
from skin_jax.tasks.declared import (
    augment,
    class_weights,
    ema_decay,
    labelled_share,
    learning_rate,
)

NAME = "classifier"

settings.declare(
    NAME,
    # What every network reduces to a map of at least 1x1.
    {"data.image_size": replace(COMMON["data.image_size"], low=32)}
    | ema_decay(0.999)
    | {
        "best_by": Setting(
            "macro_auc",
            "Validation score that chooses the checkpoint; log_loss: mean over the classes.",
            choices=("macro_auc", "log_loss"),
        )
    }
    | section(
        "growth",
        sizes=Setting(
            (),
            "Sides of the images in training, one after another, each at least half of "
            "data.image_size and at most that; evaluated at data.image_size. Empty: always that.",
            int,
            low=32,
        ),
        epochs=Setting((), "Epochs at each of growth.sizes but the last.", float, above=0),
    )
    | labelled_share()
    | section(
        "model",
        name=Setting(
            None,
            "Network: resnet50, densenet121, efficientnet_lite0, efficientnet_lite1, "
            "efficientnet_lite2, efficientnet_lite3, efficientnet_lite4, cnn, or paper A's "
            "discriminator, without a norm, with batch norm or with spectral norm: discriminator, "
            "discriminator_bn, discriminator_sn.",
            str,
            also=("arch", "model", "backbone"),
        ),
        network=Setting(
            None, "Network of one's own, given in a configuration file in place of name.", object
        ),
        weights=Setting(
            config_lib.NO_WEIGHTS,
            "Weights to start from: FILE.safetensors, hf:OWNER/NAME, or none.",
            also=("pretrained", "checkpoint"),
        ),
        dropout=Setting(0.0, "Share of features dropped before the last layer.", low=0, below=1),
        width_multiplier=Setting(1.0, "Factor on the number of channels.", above=0),
    )
    | class_weights()
    | {
        "loss.label_smoothing": Setting(
            0.1, "Share of the target that is spread over all classes.", low=0, below=1
        ),
        "loss.logit_adjustment": Setting(
            0.0,
            "Factor on the log shares of the classes in the training stream, added to the logits "
            "of the loss; 1.0: balanced softmax, 0.0: off. Wants loss.label_smoothing=0.0.",
            low=0,
        ),
        "loss.mixup": Setting(
            0.0, "Parameter a of Beta(a, a), of which mixup draws shares; 0.0: no mixup.", low=0
        ),
        "loss.cutmix": Setting(
            0.0,
            "The same for CutMix; with mixup, each image gets one of the two.",
            low=0,
        ),
        "loss.self_training": Setting(
            0.0,
            "Weight of the loss on images without a label, whose class is the network's own "
            "confident prediction; 0.0: they are left out.",
            low=0,
        ),
        "loss.pseudo_label_from_epoch": Setting(5, "First epoch of self-training.", low=0),
        "loss.pseudo_label_threshold": Setting(
            0.95, "Class probability from which a prediction is confident.", above=0, high=1
        ),
    }
    | learning_rate(2e-3, "cosine", 100)  # of the head; see `optimizers.fine_tuning`
    | section(
        "optimizer",
        backbone_multiplier=Setting(
            0.5, "Learning rate of the backbone as a factor on the head's.", low=0
        ),
        layer_decay=Setting(
            1.0,
            "Learning rate of each stage of the backbone as a factor on that of the next.",
            above=0,
            high=1,
        ),
        weight_decay=Setting(
            0.02, "Weight decay of AdamW; norms and biases have none.", low=0, also=("wd", "decay")
        ),
    )
    | augment(crop=0.7, rotation=30.0),
)


def defaults() -> ConfigDict:
    """The configuration of a classifier that is fine-tuned; its network is not named yet."""
    return config_lib.base(NAME)


def smoke(config: ConfigDict) -> None:
    """Makes a run one of about a minute, in place."""
    config_lib.shrink(config)
    config.model.width_multiplier = 0.25
    config.model.weights = config_lib.NO_WEIGHTS  # those of a whole network do not fit a narrow one
    config.optimizer.warmup_steps = 10
    config.growth.sizes = config.growth.epochs = ()
