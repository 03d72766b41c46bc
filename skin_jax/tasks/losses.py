"""Losses: pure array functions, means over the batch unless said.

`classification` is that of plain classifiers, whose logits are float [B, n], and
`binary_cross_entropy` that of GANs whose discriminator has one logit. The others are those of the
semi-supervised GAN, whose logits are float [B, n+1]: n classes, then "fake". Two readings of paper
A (Rashid et al., EMBC 2019) are offered:

- "softmax": one softmax over n+1, p(fake) is its last entry (Salimans et al., 2016, eq. 5);
- "separate": a softmax over the first n, and p(fake) = sigmoid(logit n) ("the remaining n units").
"""

from typing import Literal

import jax
import jax.numpy as jnp

Reading = Literal["softmax", "separate"]
READINGS: tuple[Reading, ...] = ("softmax", "separate")


def classification(
    logits: jax.Array,
    labels: jax.Array,
    class_weights: jax.Array,
    label_smoothing: float,
    share: jax.Array | None = None,
) -> jax.Array:
    """Cross-entropy against smoothed labels, each example weighted by its class.

    The target of an example is (1 - s) of its class and s / n of each class (Szegedy et al., CVPR
    2016, section 7).

    Args:
      logits: float [B, n].
      labels: int32 [B] in [0, n).
      class_weights: float [n]; ones for the plain mean.
      label_smoothing: s, in [0, 1); 0 for plain cross-entropy.
      share: float [B] in [0, 1], how much of each example counts; None: all of it.

    Returns:
      float [].
    """
    log_q = jax.nn.log_softmax(logits, axis=-1)
    of_class = jnp.take_along_axis(log_q, labels[:, None], axis=-1)[:, 0]
    smoothed = (1.0 - label_smoothing) * of_class + label_smoothing * jnp.mean(log_q, axis=-1)
    weights = class_weights[labels] if share is None else share * class_weights[labels]
    return -jnp.mean(weights * smoothed)


def binary_cross_entropy(logits: jax.Array, target: float) -> jax.Array:
    """-E[t log p + (1 - t) log(1 - p)] with p = sigmoid(logit), float [].

    Both players of a GAN minimise it: D with t = 1 for real and t = 0 for generated images, G with
    t = 1 for generated ones (Goodfellow et al., 2014, section 3: the non-saturating form).

    Args:
      logits: float [B].
      target: t, in [0, 1], of all of them.
    """
    true, false = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    return -jnp.mean(target * true + (1.0 - target) * false)


def hinge(real: jax.Array, generated: jax.Array) -> jax.Array:
    """E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(z)))] of logits of any shape, float [].

    Lim, Ye, "Geometric GAN", 2017; G minimises -E[D(G(z))].
    """
    return jnp.mean(jax.nn.relu(1.0 - real)) + jnp.mean(jax.nn.relu(1.0 + generated))


def log_p_fake(logits: jax.Array, reading: Reading) -> tuple[jax.Array, jax.Array]:
    """(log p_fake, log(1 - p_fake)), each [B], without cancellation at either end."""
    if reading == "softmax":
        classes = jax.nn.logsumexp(logits[:, :-1], axis=-1)
        total = jax.nn.logsumexp(logits, axis=-1)
        return logits[:, -1] - total, classes - total
    return jax.nn.log_sigmoid(logits[:, -1]), jax.nn.log_sigmoid(-logits[:, -1])


def smoothed(log_true: jax.Array, log_false: jax.Array, smoothing: float) -> jax.Array:
    """-E[(1 - s) log p + s log(1 - p)]: the target of D for real images is 1 - s, float [].

    One-sided label smoothing (Salimans et al., 2016, section 3.4).

    Args:
      log_true: log p, float [B], p being the probability of "not fake".
      log_false: log(1 - p), float [B].
      smoothing: s, in [0, 1); 0 for the plain loss.
    """
    if not smoothing:
        return -jnp.mean(log_true)
    return -jnp.mean((1.0 - smoothing) * log_true + smoothing * log_false)


def supervised(logits: jax.Array, labels: jax.Array, class_weights: jax.Array) -> jax.Array:
    """Cross-entropy over the n class logits, each example weighted by its class (paper A, eq. 2).

    The same in both readings: with one softmax over n+1, CE over n+1 = this - log(1 - p_fake).

    Args:
      logits: float [B, n+1].
      labels: int32 [B] in [0, n).
      class_weights: float [n]; ones for the plain mean.

    Returns:
      float [].
    """
    return jnp.mean(class_weights[labels] * cross_entropy(logits, labels))


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log q(label) under the softmax over the n class logits, [B]."""
    log_q = jax.nn.log_softmax(logits[:, :-1], axis=-1)
    return -jnp.take_along_axis(log_q, labels[:, None], axis=-1)[:, 0]


def pseudo_label(logits: jax.Array, threshold: float) -> jax.Array:
    """Cross-entropy of generated images against the discriminator's own confident class.

    An image counts where the largest class probability reaches the threshold; labels carry no
    gradient. This is use (ii) of generated images: "used for further training" (paper A, IV).

    Args:
      logits: float [B, n+1] of generated images.
      threshold: in (0, 1].

    Returns:
      float [], the sum over confident images divided by B.
    """
    probabilities = jax.nn.softmax(jax.lax.stop_gradient(logits[:, :-1]), axis=-1)
    return confident(logits[:, :-1], probabilities, threshold)


def confident(logits: jax.Array, probabilities: jax.Array, threshold: float) -> jax.Array:
    """Cross-entropy against the likeliest class, of examples where that is likely enough.

    Lee, "Pseudo-Label", ICML workshop 2013; with a threshold, Sohn et al., "FixMatch", NeurIPS
    2020, equation 4.

    Args:
      logits: float [B, n].
      probabilities: float [B, n], which choose class and examples.
      threshold: in (0, 1].

    Returns:
      float [], the sum over confident examples divided by B.
    """
    log_q = jax.nn.log_softmax(logits, axis=-1)
    chosen = probabilities.argmax(axis=-1)
    losses = -jnp.take_along_axis(log_q, chosen[:, None], axis=-1)[:, 0]
    return jnp.mean(jnp.where(probabilities.max(axis=-1) >= threshold, losses, 0.0))


def minimax(logits: jax.Array, reading: Reading) -> jax.Array:
    """The generator's E[log(1 - D(G(z)))] as printed (paper A, eq. 1); D = 1 - p_fake."""
    return jnp.mean(log_p_fake(logits, reading)[0])


def non_saturating(logits: jax.Array, reading: Reading) -> jax.Array:
    """The generator's -E[log D(G(z))] (Goodfellow et al., 2014, section 3)."""
    return -jnp.mean(log_p_fake(logits, reading)[1])


def feature_matching(real: jax.Array, generated: jax.Array) -> jax.Array:
    """|| E f(x) - E f(G(z)) ||^2 (Salimans et al., 2016, section 3.1).

    Args:
      real: float [B, ...] features of real images.
      generated: float [B, ...] features of generated images.

    Returns:
      float32 [].
    """
    difference = jnp.mean(real.astype(jnp.float32), 0) - jnp.mean(generated.astype(jnp.float32), 0)
    return jnp.sum(difference**2)
