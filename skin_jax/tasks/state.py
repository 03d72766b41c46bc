"""Pytrees of training state, the exponential moving average, and the digest of a state."""

import hashlib
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

PyTree = Any

MAX_NONFINITE_IN_A_ROW = 20


class Network(struct.PyTreeNode):
    """One network: parameters (float32), batch statistics (maybe empty), optimiser state."""

    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree

    @classmethod
    def create(cls, variables: PyTree, optimizer: optax.GradientTransformation) -> "Network":
        """A fresh network from `module.init`'s variables."""
        return cls(
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            opt_state=optimizer.init(variables["params"]),
        )

    @property
    def variables(self) -> dict[str, PyTree]:
        """The variables that `module.apply` takes; without the optimiser state."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    def updated(
        self, grads: PyTree, batch_stats: PyTree, optimizer: optax.GradientTransformation
    ) -> "Network":
        """One optimiser step."""
        updates, opt_state = optimizer.update(grads, self.opt_state, self.params)
        return Network(optax.apply_updates(self.params, updates), batch_stats, opt_state)


class State:
    """The fields that the states of all tasks have in common, next to their networks.

    `ema` holds the averaged `variables`, or is empty where EMA is off. `step` counts every step,
    also those that `guard` undid. Each state lists these fields itself, so that the order of its
    leaves, which its digest depends on, is its own.
    """

    step: jax.Array  # int32 []
    ema: dict[str, PyTree]
    nonfinite: jax.Array  # int32 [], steps undone so far
    nonfinite_in_a_row: jax.Array  # int32 []

    @property
    def variables(self) -> dict[str, PyTree]:
        """Variables of the networks, without optimiser states."""
        raise NotImplementedError

    @property
    def averaged(self) -> dict[str, PyTree]:
        """Variables for evaluation: the EMA where it is on, else the raw ones."""
        return self.ema or self.variables

    @property
    def counts(self) -> dict[str, jax.Array]:
        """The counts of undone steps as float32 scalars to log."""
        return {
            "nonfinite": self.nonfinite.astype(jnp.float32),
            "nonfinite_in_a_row": self.nonfinite_in_a_row.astype(jnp.float32),
        }


_S = TypeVar("_S", bound=State)


class GanState(State, struct.PyTreeNode):
    """Generator and discriminator, and everything else that a resumed run needs."""

    step: jax.Array
    generator: Network
    discriminator: Network
    ema: dict[str, PyTree]
    nonfinite: jax.Array
    nonfinite_in_a_row: jax.Array

    @classmethod
    def create(cls, generator: Network, discriminator: Network, use_ema: bool) -> "GanState":
        """The state before step 0."""
        fresh = cls(_zero(), generator, discriminator, {}, _zero(), _zero())
        return fresh.replace(ema=_copy(fresh.variables)) if use_ema else fresh

    @property
    def variables(self) -> dict[str, PyTree]:
        """Variables of both networks, by name."""
        return {
            "generator": self.generator.variables,
            "discriminator": self.discriminator.variables,
        }


class ClassifierState(State, struct.PyTreeNode):
    """One network, and everything else that a resumed run needs."""

    step: jax.Array
    network: Network
    ema: dict[str, PyTree]
    nonfinite: jax.Array
    nonfinite_in_a_row: jax.Array

    @classmethod
    def create(cls, network: Network, use_ema: bool) -> "ClassifierState":
        """The state before step 0."""
        fresh = cls(_zero(), network, {}, _zero(), _zero())
        return fresh.replace(ema=_copy(fresh.variables)) if use_ema else fresh

    @property
    def variables(self) -> dict[str, PyTree]:
        """Variables of the network."""
        return self.network.variables


class ClassGansState(struct.PyTreeNode):
    """The GANs of K classes, and the best generator that each has had.

    Attributes:
      gans: every leaf [K, ...].
      best: variables of the generators with the best scores, leaves [K, ...].
      best_score: float32 [K], the lower the better; inf before the first.
      best_step: int32 [K].
    """

    gans: GanState
    best: PyTree
    best_score: jax.Array
    best_step: jax.Array


class ProjectedState(struct.PyTreeNode):
    """A projected GAN, the frozen network that D sees through, and the best generator so far.

    Attributes:
      gan: of all n classes.
      features: variables of the frozen network.
      best: `variables` and `ramp` of the generator with the best score.
      best_score: float32 [n], of its images of each class, the lower the better; inf before the
        first.
      best_step: int32 [n], all the same.
    """

    gan: GanState
    features: PyTree
    best: PyTree
    best_score: jax.Array
    best_step: jax.Array


# A donated state must not hold one buffer twice: zeros of its own for each count, copies for EMA.
def _zero() -> jax.Array:
    return jnp.zeros((), jnp.int32)


def _copy(variables: dict[str, PyTree]) -> dict[str, PyTree]:
    copied: dict[str, PyTree] = jax.tree.map(jnp.copy, variables)
    return copied


def update_ema(ema: PyTree, variables: PyTree, step: jax.Array, decay: float) -> PyTree:
    """One step of the exponential moving average with decay min(decay, (1 + t) / (10 + t)).

    The warm-up lets the average forget the initial weights (as in TensorFlow's
    ExponentialMovingAverage with `num_updates`).

    Args:
      ema: the averaged variables, or an empty dict where EMA is off.
      variables: the variables after step t, in the same structure.
      step: t, int32 [].
      decay: in [0, 1).
    """
    if not ema:
        return ema
    t = step.astype(jnp.float32)
    d = jnp.minimum(decay, (1.0 + t) / (10.0 + t))
    return jax.tree.map(lambda old, new: old * d + new * (1.0 - d), ema, variables)


def guard(old: _S, new: _S, checks: PyTree) -> _S:
    """`new` where every value of `checks` is finite, else `old` with the step counted as undone.

    After MAX_NONFINITE_IN_A_ROW undone steps in a row the state stays frozen, so that the host,
    which looks less often than every step, finds the count and the last good weights.

    Args:
      old: the state before the step.
      new: the state after it, with its own `step` advanced.
      checks: pytree of floats that are non-finite if anything in the step was: losses, norms of
        the gradients, batch statistics.
    """
    flags = jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(checks)])
    # The lowest by sorting, because XLA for CPUs would write a reduction of hundreds of flags into
    # the loop of every leaf of the state, and compile a deep network's step for minutes.
    finite = jnp.sort(flags)[0]
    finite &= old.nonfinite_in_a_row < MAX_NONFINITE_IN_A_ROW
    kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    undone = (~finite).astype(jnp.int32)
    return kept.replace(
        step=new.step,
        nonfinite=old.nonfinite + undone,
        nonfinite_in_a_row=(old.nonfinite_in_a_row + 1) * undone,
    )


def digest(state: PyTree) -> str:
    """BLAKE2 digest (hex) over path, dtype, shape and bytes of every leaf, on the host.

    Equal digests mean bit-equal states, whatever devices they live on.
    """
    hasher = hashlib.blake2b(digest_size=16)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        array = np.ascontiguousarray(jax.device_get(leaf))
        hasher.update(f"{jax.tree_util.keystr(path)}:{array.dtype}:{array.shape};".encode())
        hasher.update(array.view(np.uint8).data if array.ndim else array.tobytes())
    return hasher.hexdigest()
