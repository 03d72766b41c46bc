import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from skin_jax.tasks.augment import (
    Augmentation,
    augment,
    mix,
    neighbours,
    per_example,
    to_float,
    to_uint8,
)

EVERYTHING = Augmentation(
    crop=0.7,
    flip=True,
    rotate90=True,
    rotation=20.0,
    blur_sigma=1.5,
    salt_and_pepper=0.05,
    shear=0.2,
    brightness=0.2,
    contrast=0.2,
    saturation=0.2,
    hue=10.0,
    erase=0.5,
)

run = jax.jit(augment, static_argnames=("options", "size"))


def random_images(batch, height, width=None):
    shape = (batch, height, width or height, 3)
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def smooth_images(batch, size):
    noise = np.random.default_rng(0).normal(size=(batch, size, size, 3))
    smooth = ndimage.gaussian_filter(noise, (0, 4, 4, 0))
    return np.uint8(np.clip(128 + 60 * smooth / smooth.std(), 0, 255))


def keys(batch, seed=0):
    return jax.random.split(jax.random.key(seed), batch)


def test_levels_round_trip_and_fill_the_range():
    levels = jnp.arange(256, dtype=jnp.uint8)
    floats = to_float(levels)
    assert floats.dtype == jnp.float32
    assert float(floats[0]) == -1.0
    assert float(floats[255]) == 1.0
    np.testing.assert_array_equal(to_uint8(floats), levels)
    assert to_float(levels, jnp.bfloat16).dtype == jnp.bfloat16
    np.testing.assert_array_equal(to_uint8(jnp.array([-3.0, 3.0])), np.array([0, 255], np.uint8))


def test_all_off_is_the_identity():
    images = random_images(2, 9, 14)
    out = run(images, keys(2), Augmentation())
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, to_float(jnp.asarray(images)))


def test_an_example_depends_on_its_key_alone():
    images, k = smooth_images(6, 32), keys(6)
    out = np.asarray(run(images, k, EVERYTHING))
    np.testing.assert_array_equal(out, run(images, k, EVERYTHING))
    np.testing.assert_array_equal(out[::-1], run(images[::-1], k[::-1], EVERYTHING))
    np.testing.assert_array_equal(out[3:5], run(images[3:5], k[3:5], EVERYTHING))
    mapped = jax.jit(jax.vmap(lambda image, key: per_example(image, key, EVERYTHING)))(images, k)
    np.testing.assert_allclose(out, mapped, atol=1e-5)
    same_image = run(np.repeat(images[:1], 6, axis=0), k, EVERYTHING)
    assert len({np.asarray(image).tobytes() for image in same_image}) == 6


def test_everything_at_once_stays_in_range():
    images = np.where(random_images(8, 33) > 127, 255, 0).astype(np.uint8)
    out = np.asarray(run(images, keys(8), EVERYTHING))
    assert np.isfinite(out).all()
    assert out.min() >= -1.0
    assert out.max() <= 1.0


def match(out, candidates):
    """The index of the one candidate that each image equals."""
    found = []
    for i, image in enumerate(out):
        hits = [j for j, c in enumerate(candidates) if np.allclose(image, c[i], atol=1e-5)]
        assert len(hits) == 1
        found.append(hits[0])
    return found


def test_flip_is_one_of_four_flips():
    images = random_images(40, 9, 14)
    x = np.asarray(to_float(jnp.asarray(images)))
    out = np.asarray(run(images, keys(40), Augmentation(flip=True)))
    found = match(out, [x, x[:, ::-1], x[:, :, ::-1], x[:, ::-1, ::-1]])
    assert set(found) == {0, 1, 2, 3}


@pytest.mark.parametrize("size", [8, 9])
def test_rotate90_is_one_of_four_quarter_turns(size):
    images = random_images(40, size)
    x = np.asarray(to_float(jnp.asarray(images)))
    out = np.asarray(run(images, keys(40), Augmentation(rotate90=True)))
    found = match(out, [np.rot90(x, turns, axes=(1, 2)) for turns in range(4)])
    assert set(found) == {0, 1, 2, 3}


def ramp(height, width):
    """Red rises with the row, green with the column, by one level a pixel."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = 50 + np.arange(height)[:, None]
    image[..., 1] = 50 + np.arange(width)
    return image


def test_crop_is_a_resized_window_inside_the_image():
    height, width = 40, 60
    images = np.repeat(ramp(height, width)[None], 30, axis=0)
    out = np.asarray(run(images, keys(30), Augmentation(crop=0.5)))
    rows = (out[:, :, width // 2, 0] + 1) * 127.5 - 50
    columns = (out[:, height // 2, :, 1] + 1) * 127.5 - 50
    scales = np.diff(rows[:, 5:-5], axis=1).mean(1)
    np.testing.assert_allclose(scales, np.diff(columns[:, 5:-5], axis=1).mean(1), atol=1e-3)
    assert scales.min() >= 0.5 - 1e-3
    assert scales.max() <= 1.0 + 1e-3
    assert np.ptp(scales) > 0.2
    # The outer edges of the first and the last pixel stay inside those of the image.
    first = rows[:, 20] - 20.5 * scales
    assert first.min() >= -0.5 - 0.01
    assert (first + height * scales).max() <= height - 0.5 + 0.01
    assert np.ptp(first) > 2


def test_rotation_turns_about_the_centre_within_its_limit():
    size = 41
    images = np.repeat(ramp(size, size)[None], 30, axis=0)
    out = np.asarray(run(images, keys(30), Augmentation(rotation=10.0)))
    middle = out[:, 20, 20, :2] * 127.5 + 127.5
    np.testing.assert_allclose(middle, np.full((30, 2), 70.0), atol=1e-3)
    slope = (out[:, 20, 25, 0] - out[:, 20, 15, 0]) * 12.75
    degrees = np.rad2deg(np.arcsin(slope))
    assert np.abs(degrees).max() <= 10.0 + 1e-3
    assert degrees.min() < -3
    assert degrees.max() > 3


def test_rotation_leaves_no_dark_corners():
    images = np.full((4, 16, 16, 3), 200, np.uint8)
    out = run(images, keys(4), Augmentation(rotation=45.0, crop=0.8))
    np.testing.assert_allclose(out, np.asarray(to_float(jnp.asarray(images))), atol=1e-5)


def test_blur_keeps_constants_and_the_mean_of_an_impulse():
    options = Augmentation(blur_sigma=2.0, blur_probability=1.0)
    constant = np.full((4, 20, 24, 3), 77, np.uint8)
    out = run(constant, keys(4), options)
    np.testing.assert_allclose(out, np.asarray(to_float(jnp.asarray(constant))), atol=1e-5)
    impulse = np.zeros((4, 21, 21, 3), np.uint8)
    impulse[:, 1, 10] = 255
    x, out = to_float(jnp.asarray(impulse)), np.asarray(run(impulse, keys(4), options))
    np.testing.assert_allclose(out.mean((1, 2)), np.asarray(x).mean((1, 2)), atol=1e-5)


def test_blur_is_scipys_gaussian_filter_for_some_sigma():
    images = random_images(20, 24, 30)
    x = np.asarray(to_float(jnp.asarray(images)))
    out = np.asarray(run(images, keys(20), Augmentation(blur_sigma=2.0, blur_probability=1.0)))
    found = []
    for image, blurred in zip(x, out, strict=True):
        errors = {
            sigma: np.abs(ndimage.gaussian_filter(image, (sigma, sigma, 0)) - blurred).max()
            for sigma in np.linspace(0.01, 2.0, 60)
        }
        found.append(min(errors, key=errors.get))
        assert errors[found[-1]] < 0.06
    assert min(found) < 0.6
    assert max(found) > 1.4


def test_blur_probability_is_the_share_of_blurred_images():
    images = random_images(200, 8)
    out = run(images, keys(200), Augmentation(blur_sigma=1.0, blur_probability=0.3))
    unchanged = np.all(np.asarray(out) == np.asarray(to_float(jnp.asarray(images))), axis=(1, 2, 3))
    assert abs((1 - unchanged.mean()) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 200)


def test_salt_and_pepper_share_and_values():
    images = np.full((16, 63, 65, 3), 128, np.uint8)
    options = Augmentation(salt_and_pepper=0.1, salt_and_pepper_probability=1.0)
    out = np.asarray(run(images, keys(16), options))
    grey = out[..., 0] == to_float(jnp.uint8(128))
    assert set(np.unique(out[~grey])) == {-1.0, 1.0}
    assert (out == out[..., :1]).all()
    pixels = grey.size
    for value in (-1.0, 1.0):
        share = (out[..., 0] == value).mean()
        assert abs(share - 0.05) < 4 * np.sqrt(0.05 * 0.95 / pixels)


def test_salt_and_pepper_probability_and_extreme_shares():
    images = np.full((200, 8, 8, 3), 128, np.uint8)
    options = Augmentation(salt_and_pepper=1.0, salt_and_pepper_probability=0.5)
    out = np.abs(np.asarray(run(images, keys(200), options)))
    noisy = (out == 1.0).all(axis=(1, 2, 3))
    clean = (out < 1.0).all(axis=(1, 2, 3))
    assert (noisy | clean).all()
    assert abs(noisy.mean() - 0.5) < 4 * np.sqrt(0.25 / 200)


@pytest.mark.parametrize(
    "values",
    [
        {"crop": 0.0},
        {"crop": 1.1},
        {"rotation": -1.0},
        {"rotation": 181.0},
        {"blur_sigma": -0.1},
        {"blur_sigma": float("inf")},
        {"blur_probability": 1.5},
        {"salt_and_pepper": -0.1},
        {"salt_and_pepper_probability": float("nan")},
    ],
    ids=str,
)
def test_options_outside_their_range_are_named(values):
    (name,) = values
    with pytest.raises(ValueError, match=f"^{name} must be"):
        Augmentation(**values)


def test_bad_arguments_are_named():
    images = random_images(2, 8, 10)
    with pytest.raises(ValueError, match="square images, not 8x10"):
        augment(images, keys(2), Augmentation(rotate90=True))
    with pytest.raises(ValueError, match="uint8"):
        augment(images.astype(np.float32), keys(2), Augmentation())
    with pytest.raises(ValueError, match="2 typed keys"):
        augment(images, keys(3), Augmentation())
    with pytest.raises(ValueError, match="typed keys, not uint32"):
        augment(images, jnp.zeros((2,), jnp.uint32), Augmentation())


def test_another_size_shows_the_same_picture():
    images = smooth_images(2, 48)
    small = np.asarray(run(images, keys(2), Augmentation(), size=24))
    # Halving with bilinear weights at the middles of pixels is the mean of four.
    means = np.asarray(to_float(images)).reshape(2, 24, 2, 24, 2, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(small, means, atol=1e-5)
    turned = Augmentation(flip=True, rotate90=True)
    whole = np.asarray(run(images, keys(2), turned)).reshape(2, 24, 2, 24, 2, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(run(images, keys(2), turned, size=24), whole, atol=1e-5)


def test_the_own_size_changes_no_bit():
    images = smooth_images(2, 32)
    np.testing.assert_array_equal(
        run(images, keys(2), EVERYTHING, size=32), run(images, keys(2), EVERYTHING)
    )


def test_brightness_keeps_black_and_scales_all_levels_alike():
    images = smooth_images(8, 16)
    images[:, 0, 0] = 0
    levels = np.asarray(to_float(images)) + 1.0
    out = np.asarray(run(images, keys(8), Augmentation(brightness=0.3))) + 1.0
    np.testing.assert_allclose(out[:, 0, 0], 0.0, atol=1e-6)
    factors = out[:, 8, 8] / levels[:, 8, 8]
    assert np.ptp(factors, axis=1).max() < 1e-4
    assert factors.min() >= 0.7
    assert factors.max() <= 1.3
    assert np.ptp(factors[:, 0]) > 0.1


def test_contrast_keeps_the_mean_grey_and_saturation_each_grey():
    images = smooth_images(8, 16) // 2 + 64
    luma = np.array([0.299, 0.587, 0.114])
    before = np.asarray(to_float(images)) @ luma
    paler = np.asarray(run(images, keys(8), Augmentation(contrast=0.3))) @ luma
    np.testing.assert_allclose(paler.mean(axis=(1, 2)), before.mean(axis=(1, 2)), atol=1e-3)
    assert np.abs(paler.std(axis=(1, 2)) / before.std(axis=(1, 2)) - 1).max() > 0.1
    for colours in (Augmentation(saturation=0.5), Augmentation(hue=10.0)):
        out = np.asarray(run(images, keys(8), colours))
        before = np.asarray(to_float(images))
        np.testing.assert_allclose(out @ luma, before @ luma, atol=3e-3)
        assert np.abs(out - before).max() > 0.02


def test_a_shear_moves_rows_and_no_columns_apart():
    images = np.broadcast_to(np.arange(32, dtype=np.uint8)[None, :, None, None], (4, 32, 32, 3))
    sheared = run(images, keys(4), Augmentation(shear=0.3))
    np.testing.assert_array_equal(sheared, to_float(jnp.asarray(images)))  # each row is one colour
    across = run(np.swapaxes(images, 1, 2), keys(4), Augmentation(shear=0.3))
    assert np.abs(np.asarray(across) - np.asarray(to_float(np.swapaxes(images, 1, 2)))).max() > 0.01


def test_an_erased_rectangle_is_grey_and_as_large_as_the_paper_says():
    images = np.full((200, 40, 40, 3), 255, np.uint8)
    grey = (np.asarray(run(images, keys(200), Augmentation(erase=0.5))) == 0.0).all(axis=-1)
    area = grey.mean(axis=(1, 2))
    assert 0.35 < (area > 0).mean() < 0.65
    assert area[area > 0].min() > 0.01
    assert area.max() < 0.36
    for shown in grey[area > 0]:
        rows, columns = shown.any(axis=1), shown.any(axis=0)
        assert (shown == rows[:, None] & columns[None]).all()


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_a_mixed_image_has_its_share_of_itself_and_the_rest_of_its_neighbour(mixup, cutmix):
    levels = jnp.arange(16.0)[:, None, None, None]
    images = jnp.broadcast_to(levels, (16, 32, 32, 3))
    mixed, own = jax.jit(mix, static_argnames=("mixup", "cutmix"))(
        images, jax.random.key(0), mixup=mixup, cutmix=cutmix
    )
    np.testing.assert_allclose(
        mixed.mean(axis=(1, 2, 3)),
        own * jnp.arange(16.0) + (1 - own) * neighbours(jnp.arange(16.0)),
        rtol=1e-4,
    )
    assert 0.0 <= own.min() < 0.9
    assert own.max() <= 1.0
    whole = np.isin(np.asarray(mixed), np.arange(16.0)).all(axis=(1, 2, 3))
    assert whole.all() == (mixup == 0.0)
    assert whole.any() == (cutmix > 0.0)
