"""The form of the augmentation for TPUs, next to the one for other platforms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from skin_jax.tasks import augment, planes
from skin_jax.tasks.augment import Augmentation

SIZE = 48


@pytest.fixture(scope="module")
def images():
    """Smooth ones, as two interpolations differ where neighbours do."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (8, 6, 6, 3), np.uint8)
    smooth = [Image.fromarray(c).resize((SIZE, SIZE), Image.Resampling.BICUBIC) for c in coarse]
    return jnp.asarray(np.stack(list(map(np.asarray, smooth))))


def both_forms(images, options, shape):
    draws = jnp.asarray(np.random.default_rng(1).random((len(images), 8)), jnp.float32)
    matrix, centre = augment._affine_map(draws[:, :7], draws[:, 7], options, (SIZE, SIZE))
    reach = math.hypot(1.0, 1.0 + options.shear) if options.rotation or options.shear else 1.0
    return (
        augment._resample(images, matrix, centre, shape),
        planes.resample(images, matrix, centre, shape, reach),
    )


@pytest.mark.parametrize("side", [SIZE, 30])
@pytest.mark.parametrize(
    "options",
    [
        Augmentation(),
        Augmentation(crop=0.6),
        Augmentation(flip=True, rotate90=True),
        Augmentation(crop=0.6, flip=True, rotate90=True),
    ],
    ids=["nothing", "crop", "turns", "all"],
)
def test_both_forms_are_equal_where_axes_stay_axes(images, options, side):
    expected, found = both_forms(images, options, (side, side))
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        Augmentation(rotation=180.0),
        Augmentation(shear=1.0),
        Augmentation(crop=0.7, flip=True, rotate90=True, rotation=180.0, shear=0.3),
    ],
    ids=["rotation", "shear", "all"],
)
def test_a_turned_image_differs_by_its_interpolation_alone(images, options):
    expected, found = both_forms(images, options, (SIZE, SIZE))
    assert np.abs(found - expected).mean() < 0.5  # of 255
    # Nothing from outside of the image and its mirror image, not in a corner either.
    assert np.abs(found - expected).max() < 25.0


def test_the_blurs_are_equal():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.random((3, 20, 12, 3)), jnp.float32)
    weights = jnp.asarray(rng.random((3, 7)), jnp.float32)
    expected = augment._convolve(augment._convolve(x, weights, axis=1), weights, axis=2)
    np.testing.assert_allclose(planes.blur(x, weights), expected, rtol=1e-5)


def test_tpus_gather_no_pixels():
    options = Augmentation(crop=0.8, flip=True, rotate90=True, rotation=15.0, blur_sigma=1.0)
    traced = jax.jit(augment.augment, static_argnums=2).trace(
        jax.ShapeDtypeStruct((2, SIZE, SIZE, 3), jnp.uint8),
        jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2)),
        options,
    )
    texts = {
        platform: traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cuda", "tpu")
    }
    gathers = {
        platform: [line for line in text.splitlines() if "gather" in line and "ui8" in line]
        for platform, text in texts.items()
    }
    assert gathers["cuda"]
    assert not gathers["tpu"]
