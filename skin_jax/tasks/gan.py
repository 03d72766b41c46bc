"""Parts that the steps of all GANs here have in common."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import optax

from skin_jax.tasks.state import GanState, Network, guard, update_ema

PyTree = Any
Metrics = dict[str, jax.Array]


def in_training(
    network: nn.Module, params: PyTree, batch_stats: PyTree, *inputs: Any
) -> tuple[Any, PyTree]:
    """A network's output in training, and its new batch statistics (empty where it has none)."""
    output, updates = network.apply(
        {"params": params, "batch_stats": batch_stats}, *inputs, train=True, mutable=["batch_stats"]
    )
    return output, updates.get("batch_stats", {})


def adversarial_step(
    state: GanState,
    generate: Callable[[PyTree], tuple[PyTree, PyTree]],
    discriminator_step: Callable[[PyTree], tuple[Network, Metrics]],
    objective: Callable[[PyTree, Network], jax.Array],
    generator_optimizer: optax.GradientTransformation,
    ema_decay: float,
) -> tuple[GanState, Metrics]:
    """One D step, then one G step on the same generated images, which are generated once.

    Args:
      state: before the step; the networks that its `ema` holds are averaged.
      generate: parameters of G -> generated images, or what D sees of them, and G's batch
        statistics after them.
      discriminator_step: generated images -> D after its step, and its metrics.
      objective: generated images and D after its step -> G's loss, float32 [].
      generator_optimizer: of G.
      ema_decay: see `state.update_ema`.

    Returns:
      The state after the step (the old one where anything was not finite), and D's metrics,
      `g_loss`, `g_grad_norm` and the counts of undone steps, float32 [].
    """
    generated, pull_back, g_stats = jax.vjp(generate, state.generator.params, has_aux=True)
    d, d_metrics = discriminator_step(generated)
    g_loss, cotangent = jax.value_and_grad(objective)(generated, d)
    (g_grads,) = pull_back(cotangent)
    g = state.generator.updated(g_grads, g_stats, generator_optimizer)

    new = state.replace(step=state.step + 1, generator=g, discriminator=d)
    averaged = {name: new.variables[name] for name in state.ema}
    new = new.replace(ema=update_ema(state.ema, averaged, new.step, ema_decay))
    metrics = {**d_metrics, "g_loss": g_loss, "g_grad_norm": optax.tree.norm(g_grads)}
    new = guard(state, new, (metrics, g.batch_stats, d.batch_stats))
    return new, metrics | new.counts
