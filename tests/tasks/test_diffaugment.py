import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skin_jax.tasks.diffaugment import DiffAugment, diffaugment

OFF = {"color": 0.0, "translation": 0.0, "cutout": 0.0}
IMAGES = np.random.default_rng(0).uniform(-1, 1, (64, 16, 16, 3)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(1), 64)


def run(images=IMAGES, keys=KEYS, **options):
    return np.asarray(diffaugment(jnp.asarray(images), keys, DiffAugment(**{**OFF, **options})))


def test_with_all_off_images_stay_as_they_are():
    np.testing.assert_array_equal(run(), IMAGES)


def test_an_image_depends_on_its_key_alone():
    options = {"color": 1.0, "translation": 0.125, "cutout": 0.25}
    whole = run(**options)
    np.testing.assert_allclose(run(IMAGES[5:9], KEYS[5:9], **options), whole[5:9], atol=1e-6)
    same = run(np.broadcast_to(IMAGES[:1], IMAGES.shape), **options)
    assert np.abs(same[0] - same[1]).max() > 0.1


def test_translation_moves_by_whole_pixels_and_fills_with_grey():
    moved = run(translation=0.125)
    seen = set()
    for image, original in zip(moved, IMAGES, strict=True):
        padded = np.pad(original, ((2, 2), (2, 2), (0, 0)))
        shifts = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if np.array_equal(image, padded[y : y + 16, x : x + 16])
        ]
        assert len(shifts) == 1
        seen.update(shifts)
    assert {y for y, _ in seen} == {x for _, x in seen} == set(range(5))


def test_cutout_is_a_grey_square_that_may_leave_the_image():
    cut = run(cutout=0.25)
    holes = (cut == 0).all(axis=3)
    np.testing.assert_array_equal(cut[~holes], IMAGES[~holes])
    heights, widths = holes.any(axis=2).sum(axis=1), holes.any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(holes.sum(axis=(1, 2)), heights * widths)
    assert set(heights) == set(widths) == {2, 3, 4}  # of 4, at least half of it is inside


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_color_has_the_ranges_of_the_paper_and_its_strength(strength):
    grey = np.full((64, 16, 16, 3), 0.25, np.float32)
    brightness = run(grey, color=strength)[:, 0, 0, 0] - 0.25
    assert 0.4 * strength < np.abs(brightness).max() <= 0.5 * strength
    changed, mean = run(color=strength), IMAGES.mean(axis=(1, 2, 3), keepdims=True)

    def spread(x, axis):
        return x.std(axis=axis).mean(axis=tuple(range(1, 3)) if axis == 3 else None)

    lightness = changed.mean(axis=3).std(axis=(1, 2)) / IMAGES.mean(axis=3).std(axis=(1, 2))
    assert 1 - 0.5 * strength <= lightness.min() < 1 < lightness.max() <= 1 + 0.5 * strength
    colour = (changed.std(axis=3) / IMAGES.std(axis=3)).mean(axis=(1, 2)) / lightness
    assert 1 - strength <= colour.min() < 0.8
    assert 1.2 < colour.max() <= 1 + strength
    assert np.abs(mean).max() < 1


def test_gradients_are_those_of_finite_differences():
    options = DiffAugment(color=1.0, translation=0.125, cutout=0.25)
    images, keys = jnp.asarray(IMAGES[:3]), KEYS[:3]
    weights = jnp.asarray(np.random.default_rng(1).normal(size=images.shape), jnp.float32)

    @jax.jit
    def value(x):
        return jnp.sum(weights * jnp.tanh(diffaugment(x, keys, options)))

    gradient = np.asarray(jax.grad(value)(images), np.float64)
    for seed in range(5):
        direction = np.random.default_rng(seed).normal(size=images.shape).astype(np.float32)
        step = 1e-2
        measured = (value(images + step * direction) - value(images - step * direction)) / 2 / step
        np.testing.assert_allclose(measured, (gradient * direction).sum(), rtol=2e-3, atol=2e-2)
