"""How near a set of generated images is to real ones, and whether they are copies of them.

Pure: arrays in, numbers out. Features are float [N, D], any network's; arithmetic is float64. What
too few images leave undefined is NaN. Only `sliced_wasserstein` depends on the order of the images.
"""

from typing import NamedTuple

import numpy as np

NEIGHBOURS = 5
"""The k of `prdc`, that of Naeem et al.'s experiments."""

SMALLEST_LEVEL = 16
"""No level of the pyramid of `sliced_wasserstein` has a smaller side."""

_PATCH = 7
_PATCHES_PER_IMAGE = 128
_DIRECTIONS = 4 * 128
_BLOCK = 1024


class Prdc(NamedTuple):
    """Each of them 1 for equal sets in expectation; density may be larger, the others may not."""

    precision: float  # share of the generated images within the real images' neighbourhoods
    recall: float  # share of the real images within the generated images' neighbourhoods
    density: float  # real neighbourhoods around a generated image, divided by k
    coverage: float  # share of the real images with a generated one in their neighbourhood


def kid(real: np.ndarray, generated: np.ndarray) -> float:
    """Kernel inception distance: the unbiased estimate of MMD^2 over the whole sets.

    Of features [N, D] and [M, D]; the kernel is (x.y / D + 1)^3 (Binkowski et al., "Demystifying
    MMD GANs", ICLR 2018, which takes means over random subsets of larger sets). The expectation is
    the same for any size of the sets and 0 for equal distributions, so single values may be
    negative. NaN where a set has fewer than two images.
    """
    if min(len(real), len(generated)) < 2:
        return float("nan")
    x, y = np.asarray(real, np.float64), np.asarray(generated, np.float64)
    kernels = (_kernel(a, a) for a in (x, y))
    within = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in kernels]
    return float(sum(within) - 2 * _kernel(x, y).mean())


def fid(real: np.ndarray, generated: np.ndarray) -> float:
    """Frechet inception distance of the Gaussians with the sets' means and covariances.

    |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)) (Heusel et al., NeurIPS 2017), of features [N, D] and
    [M, D]. It is biased upwards in small sets: compare sets of equal size only. A set of fewer than
    D + 1 images has a rank-deficient covariance. NaN where a set has fewer than two images.
    """
    if min(len(real), len(generated)) < 2:
        return float("nan")
    small, large = sorted((np.asarray(x, np.float64) for x in (real, generated)), key=len)
    offset = small.mean(axis=0) - large.mean(axis=0)
    # S = A^T A, S' = B^T B: the eigenvalues of S S' are the squared singular values of A B^T.
    a, b = ((x - x.mean(axis=0)) / np.sqrt(len(x) - 1) for x in (small, large))
    traces = np.square(a).sum() + np.square(b).sum()
    if len(a) > a.shape[1]:  # a square A with the same A^T A
        values, vectors = np.linalg.eigh(a.T @ a)
        a = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    product = a @ b.T
    squares = np.linalg.eigvalsh(product @ product.T)
    return float(offset @ offset + traces - 2 * np.sqrt(np.maximum(squares, 0)).sum())


def prdc(real: np.ndarray, generated: np.ndarray, k: int = NEIGHBOURS) -> Prdc:
    """Precision, recall, density and coverage, of features [N, D] and [M, D].

    Precision and recall: Kynkaanniemi et al., NeurIPS 2019. Density and coverage: Naeem et al.,
    ICML 2020. The neighbourhood of an image is the closed ball to its k-th nearest other image of
    the same set, in Euclidean distance. NaN where too few images leave a value undefined: `recall`
    needs k + 1 generated images, the others k + 1 real ones, and all of them an image in each set.
    """
    precision = recall = density = coverage = float("nan")
    if len(real) and len(generated):
        # What is near the origin loses less to rounding in the squares of distances.
        centre = real.mean(axis=0, dtype=np.float64)
        x, y = real - centre, generated - centre
        across = _squared_distances(x, y)
        if len(x) > k:
            within = across <= _squared_radii(x, k)[:, None]
            precision = float(within.any(axis=0).mean())
            density = float(within.sum(axis=0).mean() / k)
            coverage = float(within.any(axis=1).mean())
        if len(y) > k:
            recall = float((across <= _squared_radii(y, k)[None]).any(axis=1).mean())
    return Prdc(precision, recall, density, coverage)


def nearest(queries: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest reference of each query by cosine distance, 1 - cos, in [0, 2].

    Args:
      queries: features [Q, D]; a vector of zeros has distance 1 from everything.
      references: features [N, D], N > 0.

    Returns:
      Distances float64 [Q] and indices of the references int64 [Q].
    """
    q, r = _unit(queries), _unit(references)
    distances, indices = np.empty(len(q)), np.empty(len(q), np.int64)
    for start in range(0, len(q), _BLOCK):
        block = slice(start, start + _BLOCK)
        cosines = q[block] @ r.T
        indices[block] = cosines.argmax(axis=1)
        distances[block] = 1 - cosines.max(axis=1)
    return np.clip(distances, 0, 2), indices


def mean_distance(features: np.ndarray) -> float:
    """The mean Euclidean distance between two of the images, features [N, D]; NaN for N < 2."""
    n, x = len(features), np.asarray(features, np.float64)
    if n < 2:
        return float("nan")
    distances = np.sqrt(_squared_distances(x, x))
    return float((distances.sum() - np.trace(distances)) / (n * (n - 1)))


def sliced_wasserstein(a: np.ndarray, b: np.ndarray, seed: int) -> dict[int, float]:
    """Sliced Wasserstein distance between patches, for each level of a Laplacian pyramid.

    128 patches of 7x7 pixels an image and level, each set's normalised to mean 0 and variance 1 in
    each channel, projected on 512 random directions (Karras et al., "Progressive Growing of GANs",
    ICLR 2018, section 5 and appendix; its figures are these times 1,000). Biased upwards in small
    sets: compare equal sizes only.

    Args:
      a, b: uint8 [N, S, S, 3], as many and as large in both; S >= 16.
      seed: of the patches and the directions.

    Returns:
      Side of the level -> distance, from S down by halves while at least 16; NaN for N < 2.

    Raises:
      ValueError: sets that differ in shape, or images that are too small.
    """
    if a.shape != b.shape or a.shape[1] != a.shape[2]:
        raise ValueError(f"two sets of square images of one shape, not {a.shape} and {b.shape}")
    if a.shape[1] < SMALLEST_LEVEL:
        raise ValueError(f"images of at least {SMALLEST_LEVEL} pixels, not {a.shape[1]}")
    rng = np.random.default_rng(seed)
    if len(a) < 2:
        return {level.shape[1]: float("nan") for level in _pyramid(a[:0])}
    distances = {}
    for level_a, level_b in zip(_pyramid(a), _pyramid(b), strict=True):
        directions = rng.standard_normal((_DIRECTIONS, _PATCH * _PATCH * 3), np.float32)
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        projected = _projected(level_a, directions, rng)
        projected -= _projected(level_b, directions, rng)
        distances[level_a.shape[1]] = float(np.abs(projected, out=projected).mean())
    return distances


def _unit(features: np.ndarray) -> np.ndarray:
    x = np.asarray(features, np.float64)
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, norms, out=np.zeros_like(x), where=norms > 0)


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[N, M] of [N, D] and [M, D]."""
    squares = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1)[None]
    return np.maximum(squares - 2 * (x @ y.T), 0)


def _squared_radii(x: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each of [N, D] to its k-th nearest other, [N]."""
    distances = _squared_distances(x, x)
    np.fill_diagonal(distances, -1.0)  # first of all, also among duplicates
    return np.partition(distances, k, axis=1)[:, k]


def _pyramid(images: np.ndarray) -> list[np.ndarray]:
    """Laplacian pyramid (Burt and Adelson, 1983) of [N, S, S, 3], float32, the finest first."""
    levels = [images.astype(np.float32)]
    while levels[-1].shape[1] // 2 >= SMALLEST_LEVEL:
        finer = levels[-1]
        coarser = _blurred(finer)[:, ::2, ::2]
        spread = np.zeros_like(finer)
        spread[:, ::2, ::2] = 4 * coarser
        levels[-1] = finer - _blurred(spread)
        levels.append(coarser)
    return levels


def _blurred(x: np.ndarray) -> np.ndarray:
    """Binomial 5x5 filter; the edges continue as mirror images around the outermost pixels."""
    weights = np.array([1, 4, 6, 4, 1], np.float32) / 16
    for axis in (1, 2):
        padded = np.pad(x, [(2 * (i == axis),) * 2 for i in range(4)], mode="reflect")
        taps = (np.take(padded, range(i, i + x.shape[axis]), axis) for i in range(len(weights)))
        x = sum(weight * tap for weight, tap in zip(weights, taps, strict=True))
    return x


def _projected(level: np.ndarray, directions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random patches of [N, S, S, 3], normalised in each channel, along directions [P, 147].

    float32 [P, N * 128], each row sorted.
    """
    n, size = level.shape[:2]
    corners = rng.integers(0, size - _PATCH + 1, (2, n, _PATCHES_PER_IMAGE))
    rows, columns = corners[..., None, None]
    rows, columns = rows + np.arange(_PATCH)[:, None], columns + np.arange(_PATCH)
    patches = level[np.arange(n)[:, None, None, None], rows, columns].reshape(-1, _PATCH**2 * 3)
    mean, squares = _by_channel(patches), _by_channel(np.square(patches))
    variance = squares - np.square(mean)
    # A channel that does not vary has nothing to normalise; what is left of it is rounding.
    deviation = np.sqrt(np.where(variance > 1e-6 * squares, variance, np.inf))
    # The directions are normalised in the place of the patches: those are many more.
    scaled = directions / np.tile(deviation, _PATCH**2).astype(np.float32)
    projected = scaled @ patches.T
    projected -= (scaled @ np.tile(mean, _PATCH**2).astype(np.float32))[:, None]
    projected.sort(axis=1)
    return projected


def _by_channel(values: np.ndarray) -> np.ndarray:
    """Mean of float32 [N, positions * 3] in each channel, float64 [3]."""
    sums = np.ones(len(values), np.float32) @ values  # many times faster than a mean in float64
    return sums.reshape(-1, 3).mean(axis=0, dtype=np.float64) / len(values)
