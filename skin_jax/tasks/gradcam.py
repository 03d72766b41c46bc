"""Grad-CAM: where in an image a network found what speaks for a class."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp


def grad_cam(
    forward: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    features: jax.ShapeDtypeStruct,
    labels: jax.Array,
) -> jax.Array:
    """Heat maps float32 [B, h, w] in [0, 1], each divided by its highest value.

    Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks", ICCV 2017, equations 1 and
    2: relu(sum_k a_k A_k), where a_k is the mean over h and w of the gradient of the class's logit
    by the feature map A_k. Where nothing speaks for the class the map is 0 everywhere.

    Args:
      forward: an array to add to the last convolution's features -> logits [B, n] and the features
        [B, h, w, K]; no example may depend on another.
      features: shape and dtype of the features.
      labels: int32 [B], the class to explain.
    """

    def score(offset: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, activations = forward(offset)
        return jnp.sum(jnp.take_along_axis(logits, labels[:, None], axis=1)), activations

    offset = jnp.zeros(features.shape, features.dtype)
    gradients, activations = jax.grad(score, has_aux=True)(offset)
    weights = jnp.mean(gradients.astype(jnp.float32), axis=(1, 2), keepdims=True)
    maps = nn.relu(jnp.sum(weights * activations.astype(jnp.float32), axis=-1))
    highest = jnp.max(maps, axis=(1, 2), keepdims=True)
    return maps / jnp.where(highest > 0.0, highest, 1.0)
