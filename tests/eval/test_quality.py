"""The golden values are torch-fidelity's and prdc's: see golden/make_quality.py."""

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage, stats

from skin_jax.eval import quality

GOLDEN = Path(__file__).parent / "golden" / "quality.npz"
PAIRS = {"near": "real", "far": "real", "wide": "wide_real"}
SUBSETS, SUBSET_SIZE, SEED = 7, 30, 2020
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("name", PAIRS)
def test_values_are_those_of_torch_fidelity_and_prdc(golden, name):
    real, generated = golden[PAIRS[name]], golden[name]
    expected = {key.split(".")[1]: v for key, v in golden.items() if key.startswith(f"{name}.")}
    size = min(len(real), len(generated))
    draws = np.random.RandomState(SEED)
    subsets = []
    for _ in range(SUBSETS):
        x = real[draws.choice(len(real), SUBSET_SIZE, replace=False)]
        y = generated[draws.choice(len(generated), SUBSET_SIZE, replace=False)]
        subsets.append(quality.kid(x, y))
    found = quality.prdc(real, generated, k=5)
    ours = {
        "kid": quality.kid(real[:size], generated[:size]),
        "kid_subsets": np.mean(subsets),
        "fid": quality.fid(real, generated),
        "fidelity_precision": found.precision,
        "fidelity_recall": found.recall,
        **found._asdict(),
    }
    assert set(ours) == set(expected)
    for key, value in expected.items():
        assert ours[key] == pytest.approx(float(value), abs=TOLERANCE), key


def test_fid_in_more_images_than_features_equals_the_closed_form(rng):
    """Commuting covariances: |m - m'|^2 + sum (s - s')^2 over the axes that they share."""
    x = rng.normal(size=(40, 6))
    x -= x.mean(axis=0)
    x = np.linalg.qr(x)[0]
    y = x * np.array([1.0, 2.0, 0.5, 1.0, 0.0, 3.0]) + 0.3  # one axis without any variance
    expected = 6 * 0.3**2 + sum((1 - s) ** 2 for s in (1, 2, 0.5, 1, 0, 3)) / 39
    assert quality.fid(x, y) == pytest.approx(expected, rel=1e-6)
    few = np.concatenate([x, np.zeros((40, 100))], axis=1), np.pad(y, ((0, 0), (0, 100)))
    assert quality.fid(*few) == pytest.approx(expected, rel=1e-6)  # the same, rank-deficient


def test_equal_sets(rng):
    x = rng.normal(size=(60, 10)).astype(np.float32)
    assert quality.fid(x, x) == pytest.approx(0, abs=1e-9)
    assert quality.prdc(x, x)[:2] == (1.0, 1.0)
    assert quality.prdc(x, x).coverage == 1.0


def test_kid_is_unbiased_for_any_sizes(rng):
    """Of one distribution: 0 in expectation, half of the values negative."""
    values = [
        quality.kid(rng.normal(size=(n, 4)), rng.normal(size=(m, 4)))
        for n, m in [(2, 5), (6, 3), (15, 15)] * 200
    ]
    for i in range(3):
        mine = np.array(values[i::3])
        assert abs(mine.mean()) < 4 * mine.std() / np.sqrt(len(mine))
        assert (mine < 0).any()


def test_order_changes_nothing(golden):
    real, generated = golden["real"], golden["near"]
    for measure in (quality.kid, quality.fid, quality.prdc):
        expected = measure(real, generated)
        np.testing.assert_allclose(measure(real[::-1], generated[::-1]), expected, rtol=1e-9)


def test_far_sets_share_no_neighbourhood_and_collapsed_ones_cover_little(rng):
    real = rng.normal(size=(50, 5))
    assert quality.prdc(real, real + 100) == (0.0, 0.0, 0.0, 0.0)
    collapsed = np.repeat(real[:1], 50, axis=0)  # one real image again and again
    found = quality.prdc(real, collapsed)
    assert found.precision == 1.0
    assert found.recall == pytest.approx(1 / 50)
    assert found.density > 1.0
    assert found.coverage < 0.5


def test_too_few_images_are_nan_and_never_zero(rng):
    x = rng.normal(size=(30, 5))
    for few in (x[:0], x[:1]):
        assert np.isnan(quality.kid(x, few))
        assert np.isnan(quality.kid(few, x))
        assert np.isnan(quality.fid(x, few))
        assert np.isnan(quality.fid(few, x))
    assert np.isnan(quality.prdc(x, x[:0])).all()
    assert np.isnan(quality.prdc(x[:0], x)).all()
    np.testing.assert_array_equal(np.isnan(quality.prdc(x, x[:5])), [False, True, False, False])
    np.testing.assert_array_equal(np.isnan(quality.prdc(x[:5], x)), [True, False, True, True])
    assert not np.isnan(quality.prdc(x[:6], x[:6])).any()
    image = np.zeros((1, 32, 32, 3), np.uint8)
    found = quality.sliced_wasserstein(image, image, 0)
    assert list(found) == [32, 16]
    assert np.isnan(list(found.values())).all()


def test_nearest_is_by_angle(rng):
    references = rng.normal(size=(2000, 8))
    queries = np.concatenate([3.0 * references[[1999, 5]], -references[:1], np.zeros((1, 8))])
    distances, indices = quality.nearest(queries, references)
    assert list(indices[:2]) == [1999, 5]
    np.testing.assert_allclose(distances[:2], 0, atol=1e-12)
    cosines = references @ references[0] / np.linalg.norm(references, axis=1)
    cosines /= np.linalg.norm(references[0])
    assert indices[2] == cosines.argmin()
    assert distances[2] == pytest.approx(1 + cosines.min())
    assert distances[3] == 1.0


def test_the_pyramid_is_that_of_a_two_dimensional_filter_and_gives_the_image_back(rng):
    images = rng.integers(0, 256, (2, 36, 36, 3), dtype=np.uint8)
    row = np.array([1, 4, 6, 4, 1]) / 16
    kernel = np.outer(row, row)[None, :, :, None]

    def up(coarser, size):
        spread = np.zeros((len(coarser), size, size, 3))
        spread[:, ::2, ::2] = coarser
        return ndimage.convolve(spread, 4 * kernel, mode="mirror")

    fine, coarse = quality._pyramid(images)
    expected = ndimage.convolve(images.astype(float), kernel, mode="mirror")[:, ::2, ::2]
    np.testing.assert_allclose(coarse, expected, atol=1e-3)
    np.testing.assert_allclose(fine + up(coarse, 36), images, atol=1e-3)


def test_sliced_wasserstein_is_the_mean_distance_of_the_projections(rng):
    """Against SciPy's distance of two samples, on the same patches, normalised one by one."""
    levels = [rng.normal(size=(3, 16, 16, 3)).astype(np.float32) * s + s for s in (1.0, 3.0)]
    directions = rng.normal(size=(4, 147)).astype(np.float32)
    found = [quality._projected(x, directions, np.random.default_rng(3)) for x in levels]
    projections = []
    for level in levels:
        rows, columns = np.random.default_rng(3).integers(0, 10, (2, 3, 128))
        patches = np.array(
            [
                level[n, rows[n, i] : rows[n, i] + 7, columns[n, i] : columns[n, i] + 7]
                for n in range(3)
                for i in range(128)
            ],
            np.float64,
        )
        patches -= patches.mean(axis=(0, 1, 2))
        patches /= patches.std(axis=(0, 1, 2))
        projections.append(directions @ patches.reshape(384, 147).T)
    expected = [stats.wasserstein_distance(x, y) for x, y in zip(*projections, strict=True)]
    np.testing.assert_allclose(np.abs(found[0] - found[1]).mean(axis=1), expected, rtol=1e-3)


def test_sliced_wasserstein_is_a_function_of_its_seed_and_sees_texture(rng):
    noise, other = rng.integers(0, 256, (2, 40, 32, 32, 3), dtype=np.uint8)
    coarse = rng.integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
    blocks = coarse.repeat(8, axis=1).repeat(8, axis=2)
    found = quality.sliced_wasserstein(noise, blocks, 1)
    assert list(found) == [32, 16]
    assert quality.sliced_wasserstein(noise, blocks, 1) == found
    assert quality.sliced_wasserstein(noise, blocks, 2) != found
    for same in (noise, other):
        assert found[32] > 2 * quality.sliced_wasserstein(noise, same, 1)[32]
    flat = np.full((40, 32, 32, 3), 7, np.uint8)
    assert np.isfinite(list(quality.sliced_wasserstein(flat, noise, 1).values())).all()


def test_sets_that_do_not_fit_are_refused():
    images = np.zeros((4, 32, 32, 3), np.uint8)
    with pytest.raises(ValueError, match="two sets of square images"):
        quality.sliced_wasserstein(images, images[:3], 0)
    with pytest.raises(ValueError, match="at least 16 pixels"):
        quality.sliced_wasserstein(images[:, :8, :8], images[:, :8, :8], 0)
