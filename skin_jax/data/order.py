"""The order of a training stream: which example stands at a position."""

from collections.abc import Callable, Sequence

import numpy as np

from skin_jax.base.errors import UserError

Stream = Callable[[np.ndarray], np.ndarray]
"""Indices of the examples at positions int64 [...] of a training stream: int64 [...]."""


class Order:
    """Which example stands at a position of the training stream: a pure function of the seed.

    The examples are in groups, each of which goes through permutations of its members end to end.
    natural: one group, of all examples.
    balanced: one group for each class that has examples; each round of the stream holds one example
    of each, in a shuffled order.
    power: the same groups; in a round, which is about as long as there are examples, a class of n
    examples has places in proportion to n^exponent, at least one.
    by_class: one group for each of `classes`; each batch holds `per_class` examples of each, side
    by side, which depend on the seed and the class, not on the other classes.

    Args:
      indices: int [N], the examples of the training split; UserError where there are none.
      labels: int [N], their classes.
      seed: the run's seed.
      sampling: "natural", "balanced", "power" or "by_class".
      exponent: of "power"; 1 draws classes as often as natural, 0 as balanced.
      classes: labels of the groups of "by_class", in the order of a batch; each has an example.
      per_class: examples of each in a batch of "by_class".
    """

    def __init__(
        self,
        indices: np.ndarray,
        labels: np.ndarray,
        *,
        seed: int,
        sampling: str,
        exponent: float = 0.5,
        classes: Sequence[int] | np.ndarray = (),
        per_class: int = 1,
    ):
        if len(indices) == 0:
            raise UserError("the training split is empty; see config.data.split_fractions")
        groups = [(0, indices)]
        if sampling in ("balanced", "power"):
            groups = list(enumerate(indices[labels == c] for c in np.unique(labels)))
        elif sampling == "by_class":
            groups = [(int(c), indices[labels == c]) for c in classes]
        self._groups = groups  # the stream of the permutations of each, and its members
        self._places = np.ones(len(groups), np.int64)  # of each in a round
        if sampling == "power":
            shares = np.array([len(members) for _, members in groups]) ** exponent
            places = np.rint(len(indices) * shares / shares.sum()).astype(np.int64)
            self._places = np.maximum(places, 1)
        self._shuffled = sampling in ("balanced", "power") and len(groups) > 1
        self._per_group = per_class
        self._seed = seed
        self._kept: dict[int, dict[int, np.ndarray]] = {}

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Indices of the examples at positions int64 [...]: int64 [...]."""
        visit, row = np.divmod(positions, self._per_group)
        ends = np.cumsum(self._places)
        turn, slot = np.divmod(visit, ends[-1])
        if self._shuffled:  # the stream after those of the groups is the one that orders them
            slot = self._permuted(len(self._groups), int(ends[-1]), visit)
        chosen = np.searchsorted(ends, slot, side="right")
        turn = turn * self._places[chosen] + slot - (ends - self._places)[chosen]
        found = np.empty(positions.shape, np.int64)
        for place, (stream, members) in enumerate(self._groups):
            here = chosen == place
            number = (turn * self._per_group + row)[here]
            found[here] = members[self._permuted(stream, len(members), number)]
        return found

    def _permuted(self, stream: int, size: int, numbers: np.ndarray) -> np.ndarray:
        """Entries, by their number, of a stream of permutations of `size` end to end."""
        epochs, places = np.divmod(numbers, size)
        found = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            found[here] = self._permutation(stream, size, int(epoch))[places[here]]
        return found

    def _permutation(self, stream: int, size: int, epoch: int) -> np.ndarray:
        """The permutation of an epoch of a stream; the last two of a stream are kept."""
        kept = self._kept.setdefault(stream, {})
        if epoch not in kept:
            if len(kept) > 1:
                del kept[min(kept)]
            kept[epoch] = np.random.default_rng([self._seed, stream, epoch]).permutation(size)
        return kept[epoch]


def repeated(stream: Stream, rows: int, batch_size: int) -> Stream:
    """A stream of batches of `batch_size`: the `rows` of a stream's batch, over and over."""

    def longer(positions: np.ndarray) -> np.ndarray:
        step, row = np.divmod(positions, batch_size)
        return stream(step * rows + row % rows)

    return longer


def side_by_side(first: Stream, rows: int, second: Stream, batch_size: int) -> Stream:
    """A stream of batches whose first rows come from one stream and whose others from another.

    Args:
      first: of the first rows of each batch.
      rows: how many these are.
      second: of the others.
      batch_size: of both together.
    """

    def stream(positions: np.ndarray) -> np.ndarray:
        step, row = np.divmod(positions, batch_size)
        is_first = row < rows
        found = np.empty(positions.shape, np.int64)
        found[is_first] = first((step * rows + row)[is_first])
        others = step * (batch_size - rows) + row - rows
        found[~is_first] = second(others[~is_first])
        return found

    return stream
