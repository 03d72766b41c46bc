"""A classifier's weights by timm's names: `timm.create_model(..., num_classes=n)` loads them."""

import json
from typing import Any

import jax
from safetensors.numpy import save

from skin_jax.base import devices
from skin_jax.exports import functions
from skin_jax.models import pretrained
from skin_jax.training.run import Trained


def serialized(run: Trained) -> tuple[bytes, dict[str, Any]]:
    """A safetensors file, float32, and its metadata: what else a user has to know, JSON each.

    Raises:
      UserError: the run has no checkpoint, or timm has no such network.
    """
    judge = run.ability("judge")
    network, variables = judge(run.best_state(devices.make_mesh(1))[0])
    tensors = pretrained.tensors(jax.device_get(variables), network)
    known = {
        **functions.of(run, "predict").metadata,
        "network": pretrained.title(network),
        # timm's normalisation is (x / 255 - mean) / std.
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    return save(tensors, {key: json.dumps(value) for key, value in known.items()}), known
