"""Image augmentation on the device: pure, one key per example.

What happens to an image depends on its key and the options alone, never on the batch that it stands
in. Crop, flips and rotations are one affine map, so an image is interpolated once.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

# Random words that an example has for everything but the noise. Ten are used; a draw of fewer than
# sixteen takes XLA three times as long to compile.
_NUM_DRAWS = 16


@dataclass(frozen=True)
class Augmentation:
    """Augmentations of an image, in this order. The defaults are the identity.

    crop: smallest side of the random crop as a share of the image's, in (0, 1]; the share is
      uniform in [crop, 1], the place uniform, the aspect kept, the crop resized back. 1 is off.
    flip: mirror each axis with probability 1/2.
    rotate90: turn by 0, 90, 180 or 270 degrees, each with probability 1/4; square images only.
    rotation: largest turn in degrees, in [0, 180]; uniform in [-rotation, rotation]. 0 is off. What
      comes from outside the image is its mirror image, so that no corner is black.
    blur_sigma: largest standard deviation of the Gaussian blur in pixels, at least 0; uniform in
      [0, blur_sigma], cut at 3 blur_sigma. 0 is off. The time grows with it.
    blur_probability: share of the images that are blurred, in [0, 1].
    salt_and_pepper: share of the pixels that become white or black, half each, in [0, 1], to a
      precision of 2^-16. 0 is off.
    salt_and_pepper_probability: share of the images that get this noise, in [0, 1].

    Raises:
      ValueError: if a value is outside its range.
    """

    crop: float = 1.0
    flip: bool = False
    rotate90: bool = False
    rotation: float = 0.0
    blur_sigma: float = 0.0
    blur_probability: float = 0.5
    salt_and_pepper: float = 0.0
    salt_and_pepper_probability: float = 0.5

    def __post_init__(self) -> None:
        ranges = {
            "crop": (0.0 < self.crop <= 1.0, "in (0, 1]"),
            "rotation": (0.0 <= self.rotation <= 180.0, "in [0, 180]"),
            "blur_sigma": (0.0 <= self.blur_sigma < math.inf, "at least 0"),
        } | {
            name: (0.0 <= getattr(self, name) <= 1.0, "in [0, 1]")
            for name in ("blur_probability", "salt_and_pepper", "salt_and_pepper_probability")
        }
        for name, (valid, wanted) in ranges.items():
            if not valid:
                raise ValueError(f"{name} must be {wanted}, not {getattr(self, name)}")

    @property
    def moves_pixels(self) -> bool:
        """Whether crop, flip or a rotation is on."""
        return self.crop < 1.0 or self.flip or self.rotate90 or self.rotation > 0.0


def to_float(images: jax.Array, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Map uint8 images of any shape from 0..255 to [-1, 1] of `dtype`."""
    return _scale(images.astype(jnp.float32)).astype(dtype)


def to_uint8(images: jax.Array) -> jax.Array:
    """Map float images of any shape from [-1, 1] to the nearest uint8; what lies outside is cut."""
    levels = jnp.round((images.astype(jnp.float32) + 1.0) * 127.5)
    return jnp.clip(levels, 0.0, 255.0).astype(jnp.uint8)


def augment(images: jax.Array, keys: jax.Array, options: Augmentation) -> jax.Array:
    """Augment each image with its own key.

    Args:
      images: [B, H, W, 3] uint8.
      keys: [B] typed keys.
      options: what to do; static under `jit`.

    Returns:
      [B, H, W, 3] float32 in [-1, 1]; with all options off exactly `to_float(images)`.

    Raises:
      ValueError: if shapes or dtypes don't fit, or `rotate90` meets images that aren't square.
    """
    _check(images, keys, options)
    noise_on = options.salt_and_pepper > 0.0
    noise_words = (images.shape[1] * images.shape[2] + 1) // 2 if noise_on else 0
    # One draw for everything: each further one costs a third of a second of compilation.
    words = jax.vmap(lambda key: jax.random.bits(key, (_NUM_DRAWS + noise_words,)))(keys)
    draws = (words[:, :_NUM_DRAWS] >> 8).astype(jnp.float32) * 2.0**-24
    x = to_float(images)
    if options.moves_pixels:
        matrix, centre = _affine_map(draws[:, :7], options, images.shape[1:3])
        x = _scale(_resample(images, matrix, centre))
    if options.blur_sigma > 0.0:
        blurred = draws[:, 7] < options.blur_probability
        x = _blur(x, jnp.where(blurred, options.blur_sigma * draws[:, 8], 0.0), options.blur_sigma)
    # Rounding in the interpolation and the blur can leave the range by one unit in the last place.
    x = jnp.clip(x, -1.0, 1.0)
    if noise_on:
        noisy = draws[:, 9] < options.salt_and_pepper_probability
        share = jnp.where(noisy, options.salt_and_pepper, 0.0)
        x = _salt_and_pepper(x, words[:, _NUM_DRAWS:], share)
    return x


def keys_of(rng: jax.Array, numbers: jax.Array) -> jax.Array:
    """A key for each of [B] whole numbers (positions, indices), made of it and `rng` alone."""
    return jax.vmap(jax.random.fold_in, (None, 0))(rng, numbers)


def per_example(image: jax.Array, key: jax.Array, options: Augmentation) -> jax.Array:
    """Augment one image [H, W, 3] uint8 with one typed key; see `augment`."""
    return augment(image[None], key[None], options)[0]


def _check(images: jax.Array, keys: jax.Array, options: Augmentation) -> None:
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != jnp.uint8:
        raise ValueError(
            f"images must be uint8 [B, H, W, 3], not {images.dtype} {list(images.shape)}"
        )
    if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) or keys.shape != images.shape[:1]:
        raise ValueError(
            f"keys must be {images.shape[0]} typed keys, not {keys.dtype} {list(keys.shape)}"
        )
    H, W = images.shape[1:3]
    if options.rotate90 and H != W:
        raise ValueError(f"rotate90 takes square images, not {H}x{W}")


def _scale(levels: jax.Array) -> jax.Array:
    # One rounding, after exact integers: the same numbers however the compiler fuses it.
    return (2.0 * levels - 255.0) * (1.0 / 255.0)


def _affine_map(
    draws: jax.Array, options: Augmentation, size: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Return matrix [B, 2, 2] and centre [B, 2] of the map from output to input positions.

    Positions are (row, column), the output's relative to its middle. Flips and quarter turns have
    entries of exactly 0 and +-1, so that they move pixels without interpolation.
    """
    fraction, row, column, flip_rows, flip_columns, quarter, angle = jnp.unstack(draws, axis=1)
    scale = options.crop + (1.0 - options.crop) * fraction
    offset = jnp.stack([row, column], axis=1) - 0.5
    free = jnp.asarray(size, jnp.float32)[None] * (1.0 - scale)[:, None]
    centre = (jnp.asarray(size, jnp.float32)[None] - 1.0) / 2.0 + offset * free

    angle = jnp.deg2rad(options.rotation * (2.0 * angle - 1.0))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    if options.rotate90:
        turns = jnp.floor(4.0 * quarter).astype(jnp.int32)
        quarter_cos = jnp.array([1.0, 0.0, -1.0, 0.0])[turns]
        quarter_sin = jnp.array([0.0, 1.0, 0.0, -1.0])[turns]
        cos, sin = cos * quarter_cos - sin * quarter_sin, sin * quarter_cos + cos * quarter_sin
    rotation = jnp.stack([jnp.stack([cos, -sin], axis=1), jnp.stack([sin, cos], axis=1)], axis=1)
    matrix = scale[:, None, None] * rotation
    if options.flip:
        flips = jnp.stack([flip_rows, flip_columns], axis=1)
        matrix *= jnp.where(flips < 0.5, -1.0, 1.0)[:, None, :]
    return matrix, centre


def _resample(images: jax.Array, matrix: jax.Array, centre: jax.Array) -> jax.Array:
    """Interpolate uint8 images bilinearly at the positions of an affine map: float32 in [0, 255].

    The images continue outside as their mirror images.
    """
    B, H, W, _ = images.shape
    rows = (jnp.arange(H, dtype=jnp.float32) - (H - 1) / 2)[None, :, None]
    columns = (jnp.arange(W, dtype=jnp.float32) - (W - 1) / 2)[None, None, :]

    def positions(axis: int, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        to_row, to_column, middle = (
            values[:, None, None]
            for values in (matrix[:, axis, 0], matrix[:, axis, 1], centre[:, axis])
        )
        mirrored = _mirror(to_row * rows + to_column * columns + middle, size)
        low = jnp.floor(mirrored)
        index = low.astype(jnp.int32)
        return index, jnp.minimum(index + 1, size - 1), (mirrored - low)[..., None]

    top, bottom, down = positions(0, H)
    left, right, across = positions(1, W)
    pixels = images.reshape(B, H * W, 3)

    # Whole pixels, so that one index brings three channels.
    @jax.vmap
    def take(image: jax.Array, index: jax.Array) -> jax.Array:
        return image.at[index].get(mode="promise_in_bounds").astype(jnp.float32)

    def along_columns(row: jax.Array) -> jax.Array:
        first = take(pixels, row * W + left)
        return first + (take(pixels, row * W + right) - first) * across

    first = along_columns(top)
    return first + (along_columns(bottom) - first) * down


def _mirror(position: jax.Array, size: int) -> jax.Array:
    """Fold positions at the outer edges of the first and the last pixel into [0, size - 1].

    Right up to one image's length outside, which no map of `_affine_map` leaves but in images more
    than three times as wide as high; what lies further is cut.
    """
    folded = size - jnp.abs(size - jnp.abs(position + 0.5)) - 0.5
    return jnp.clip(folded, 0.0, size - 1.0)


def _blur(x: jax.Array, sigma: jax.Array, largest: float) -> jax.Array:
    """Blur [B, H, W, 3] with standard deviations sigma [B]; edges continue as mirror images."""
    radius = math.ceil(3.0 * largest)
    distance = jnp.arange(-radius, radius + 1, dtype=jnp.float32)
    # The tiny addition makes a sigma of 0 the identity, exactly.
    exponent = -0.5 * jnp.square(distance)[None] / (jnp.square(sigma) + 1e-9)[:, None]
    weights = jnp.exp(exponent)
    weights /= weights.sum(axis=1, keepdims=True)

    def blur(x: jax.Array) -> jax.Array:
        return _convolve(_convolve(x, weights, axis=1), weights, axis=2)

    def blur_if_any(x: jax.Array) -> jax.Array:
        # XLA for CPUs would fuse what comes before into the blur and compute it again for every
        # tap, in two to three times the time: a conditional is a border that it doesn't cross.
        return lax.cond(jnp.any(sigma > 0.0), blur, lambda x: x, x)

    return lax.platform_dependent(x, cpu=blur_if_any, default=blur)


def _convolve(x: jax.Array, weights: jax.Array, axis: int) -> jax.Array:
    """Convolve x [B, H, W, C] with weights [B, odd] along the rows (axis 1) or columns (axis 2)."""
    B, H, W, C = x.shape
    taps = weights.shape[1]
    radius, length = taps // 2, x.shape[axis]
    widths = [(radius, radius) if a == axis else (0, 0) for a in range(4)]
    padded = jnp.pad(x, widths, mode="symmetric")
    # With columns and channels as one axis the inner loop is long.
    flat = padded.reshape(B, padded.shape[1], -1)
    step = C if axis == 2 else 1
    size = length * step
    total = jnp.zeros((B, H, W * C), x.dtype)
    for tap in range(taps):
        part = lax.slice_in_dim(flat, tap * step, tap * step + size, axis=axis)
        total += weights[:, tap, None, None] * part
    return total.reshape(x.shape)


def _salt_and_pepper(x: jax.Array, words: jax.Array, share: jax.Array) -> jax.Array:
    """Set the share [B] of the pixels of x [B, H, W, 3] to -1 or 1, half each.

    Each pixel takes 16 of the random bits of words [B, ceil(H W / 2)] uint32.
    """
    B, H, W, _ = x.shape
    halves = lax.bitcast_convert_type(words, jnp.uint16).reshape(B, -1)
    level = halves[:, : H * W].astype(jnp.int32).reshape(B, H, W, 1)
    changed = jnp.round(65536.0 * share).astype(jnp.int32)[:, None, None, None]
    noise = jnp.where(level < changed // 2, jnp.float32(-1.0), jnp.float32(1.0))
    return jnp.where(level < changed, noise, x)
