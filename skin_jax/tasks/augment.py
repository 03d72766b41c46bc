"""Image augmentation on the device: pure, one key per example.

What happens to an image depends on its key and the options alone, never on the batch that it stands
in. Crop, flips, rotations, shears and a change of size are one affine map, so an image is
interpolated once; brightness, contrast, saturation and hue are one affine map of its colours.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from skin_jax.tasks import planes

# Random words that an example has for everything but the noise. Ten are used; a draw of fewer than
# sixteen takes XLA three times as long to compile.
_NUM_DRAWS = 16

# Random words of what came later: a draw of their own leaves the other as it was.
_MORE_DRAWS = 16
_MORE = 1

_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))
"""Brightness and two coordinates of colour, whose angle is the hue, of red, green, blue (NTSC)."""
_RGB = tuple(map(tuple, np.linalg.inv(_YIQ).tolist()))

_ERASED_AREA = (0.02, 0.33)
_ERASED_ASPECT = 0.3
"""Shares of the image's area, and the smallest ratio of sides, its inverse the largest (Zhong et
al., "Random Erasing Data Augmentation", AAAI 2020, section 5)."""


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
    shear: largest shear, in [0, 1]: the columns of a row move by shear times its distance from the
      middle; uniform in [-shear, shear]. 0 is off.
    brightness, contrast, saturation: largest change of a factor on the levels, on their difference
      from the image's mean grey, and on that from each pixel's grey, in [0, 1): uniform in
      [1 - change, 1 + change]. 0 is off.
    hue: largest turn of the hue in degrees, in [0, 180]; uniform in [-hue, hue]. 0 is off.
    erase: share of the images of which a rectangle becomes grey, in [0, 1]; of 2% to 33% of the
      area, its sides in a ratio of 0.3 to 3.3. 0 is off.

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
    shear: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    erase: float = 0.0

    def __post_init__(self) -> None:
        ranges = {
            "crop": (0.0 < self.crop <= 1.0, "in (0, 1]"),
            "rotation": (0.0 <= self.rotation <= 180.0, "in [0, 180]"),
            "hue": (0.0 <= self.hue <= 180.0, "in [0, 180]"),
            "blur_sigma": (0.0 <= self.blur_sigma < math.inf, "at least 0"),
        } | {
            name: (0.0 <= getattr(self, name) <= 1.0, "in [0, 1]")
            for name in (
                *("blur_probability", "salt_and_pepper", "salt_and_pepper_probability"),
                *("shear", "erase"),
            )
        }
        ranges |= {
            name: (0.0 <= getattr(self, name) < 1.0, "in [0, 1)")
            for name in ("brightness", "contrast", "saturation")
        }
        for name, (valid, wanted) in ranges.items():
            if not valid:
                raise ValueError(f"{name} must be {wanted}, not {getattr(self, name)}")

    @property
    def moves_pixels(self) -> bool:
        """Whether crop, flip, a rotation or a shear is on."""
        geometry = self.rotation > 0.0 or self.shear > 0.0
        return self.crop < 1.0 or self.flip or self.rotate90 or geometry

    @property
    def changes_colours(self) -> bool:
        """Whether brightness, contrast, saturation or hue is on."""
        return max(self.brightness, self.contrast, self.saturation, self.hue) > 0.0


def to_float(images: jax.Array, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Map uint8 images of any shape from 0..255 to [-1, 1] of `dtype`."""
    return _scale(images.astype(jnp.float32)).astype(dtype)


def to_uint8(images: jax.Array) -> jax.Array:
    """Map float images of any shape from [-1, 1] to the nearest uint8; what lies outside is cut."""
    levels = jnp.round((images.astype(jnp.float32) + 1.0) * 127.5)
    return jnp.clip(levels, 0.0, 255.0).astype(jnp.uint8)


def augment(
    images: jax.Array, keys: jax.Array, options: Augmentation, size: int | None = None
) -> jax.Array:
    """Augment each image with its own key.

    Args:
      images: [B, H, W, 3] uint8.
      keys: [B] typed keys.
      options: what to do; static under `jit`.
      size: side of the result; static. Bilinear without antialiasing: at least half of H and W.
        None: that of the images.

    Returns:
      [B, H, W, 3] or [B, size, size, 3] float32 in [-1, 1]; with all options off and no size
      exactly `to_float(images)`.

    Raises:
      ValueError: if shapes or dtypes don't fit, or `rotate90` meets images that aren't square.
    """
    _check(images, keys, options)
    noise_on = options.salt_and_pepper > 0.0
    noise_words = (images.shape[1] * images.shape[2] + 1) // 2 if noise_on else 0
    # One draw for everything: each further one costs a third of a second of compilation.
    words = jax.vmap(lambda key: jax.random.bits(key, (_NUM_DRAWS + noise_words,)))(keys)
    draws = (words[:, :_NUM_DRAWS] >> 8).astype(jnp.float32) * 2.0**-24
    more = draws
    if options.changes_colours or options.shear > 0.0 or options.erase > 0.0:
        extra = jax.vmap(
            lambda key: jax.random.bits(jax.random.fold_in(key, _MORE), (_MORE_DRAWS,))
        )
        more = (extra(keys) >> 8).astype(jnp.float32) * 2.0**-24
    x = to_float(images)
    shape = images.shape[1:3] if size is None else (size, size)
    if options.moves_pixels or shape != images.shape[1:3]:
        matrix, centre = _affine_map(draws[:, :7], more[:, 0], options, images.shape[1:3])
        x = _scale(_moved(images, matrix, centre, shape, options))
    if options.changes_colours:
        x = _recolour(x, images, more[:, 1:5], options)
    if options.blur_sigma > 0.0:
        blurred = draws[:, 7] < options.blur_probability
        x = _blur(x, jnp.where(blurred, options.blur_sigma * draws[:, 8], 0.0), options.blur_sigma)
    # Rounding in the interpolation and the blur can leave the range by one unit in the last place.
    x = jnp.clip(x, -1.0, 1.0)
    if noise_on:
        noisy = draws[:, 9] < options.salt_and_pepper_probability
        share = jnp.where(noisy, options.salt_and_pepper, 0.0)
        x = _salt_and_pepper(x, words[:, _NUM_DRAWS:], share)
    if options.erase > 0.0:
        x = _erase(x, more[:, 5:10], options.erase)
    return x


def mix(
    images: jax.Array, rng: jax.Array, mixup: float, cutmix: float
) -> tuple[jax.Array, jax.Array]:
    """Blend each image of a batch with the one before it, the first with the last.

    mixup is a weighted mean (Zhang et al., ICLR 2018), cutmix pastes a rectangle of the neighbour
    (Yun et al., ICCV 2019); with both, each image gets one of them with probability 1/2. The share
    of an image itself is drawn from Beta(a, a), for each image anew.

    Args:
      images: float [B, H, W, 3].
      rng: a typed key.
      mixup, cutmix: a of each; 0 is off.

    Returns:
      The images, and the share of each that is its own, float32 [B]: what is left is of
      `neighbours`.
    """
    B, H, W, _ = images.shape
    blend_key, cut_key, choice_key, place_key = jax.random.split(rng, 4)
    cuts = jnp.full(B, mixup == 0.0)
    if mixup > 0.0 and cutmix > 0.0:
        cuts = jax.random.bernoulli(choice_key, 0.5, (B,))
    blended = jax.random.beta(blend_key, mixup, mixup, (B,)) if mixup > 0.0 else jnp.ones(B)
    share = jax.random.beta(cut_key, cutmix, cutmix, (B,)) if cutmix > 0.0 else jnp.ones(B)
    side = jnp.sqrt(1.0 - share)
    inside = _rectangle((H, W), side, side, jax.random.uniform(place_key, (B, 2)))
    pasted = 1.0 - inside.mean(axis=(1, 2))
    own = jnp.where(cuts, pasted, blended)
    weight = jnp.where(cuts[:, None, None], 1.0 - inside, blended[:, None, None])[..., None]
    return weight * images + (1.0 - weight) * neighbours(images), own


def neighbours(values: jax.Array) -> jax.Array:
    """Return what `mix` blends each of [B, ...] with."""
    return jnp.roll(values, 1, axis=0)


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
    draws: jax.Array, shear: jax.Array, options: Augmentation, size: tuple[int, ...]
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
    if options.shear > 0.0:
        slant = options.shear * (2.0 * shear - 1.0)
        ones, zeros = jnp.ones_like(slant), jnp.zeros_like(slant)
        sheared = jnp.stack([jnp.stack([ones, zeros], 1), jnp.stack([slant, ones], 1)], axis=1)
        matrix = jnp.einsum("bij,bjk->bik", matrix, sheared)
    if options.flip:
        flips = jnp.stack([flip_rows, flip_columns], axis=1)
        matrix *= jnp.where(flips < 0.5, -1.0, 1.0)[:, None, :]
    return matrix, centre


def _moved(
    images: jax.Array,
    matrix: jax.Array,
    centre: jax.Array,
    shape: tuple[int, ...],
    options: Augmentation,
) -> jax.Array:
    """`_resample` in the form that suits the platform."""
    if images.shape[1] != images.shape[2]:
        return _resample(images, matrix, centre, shape)
    turned = options.rotation > 0.0 or options.shear > 0.0
    reach = math.hypot(1.0, 1.0 + options.shear) if turned else 1.0
    return lax.platform_dependent(
        *(images, matrix, centre),
        tpu=lambda x, matrix, centre: planes.resample(x, matrix, centre, shape, reach),
        default=lambda x, matrix, centre: _resample(x, matrix, centre, shape),
    )


def _resample(
    images: jax.Array, matrix: jax.Array, centre: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """Interpolate uint8 images bilinearly at the positions of an affine map: float32 in [0, 255].

    The result has the rows and columns of `shape`, which span the image as the map moves it. The
    images continue outside as their mirror images.
    """
    B, H, W, _ = images.shape

    def span(count: int, size: int) -> jax.Array:
        middled = jnp.arange(count, dtype=jnp.float32) - (count - 1) / 2
        return middled if count == size else middled * (size / count)

    rows, columns = span(shape[0], H)[None, :, None], span(shape[1], W)[None, None, :]

    def positions(axis: int, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        to_row, to_column, middle = (
            values[:, None, None]
            for values in (matrix[:, axis, 0], matrix[:, axis, 1], centre[:, axis])
        )
        mirrored = planes.mirrored(to_row * rows + to_column * columns + middle, size)
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


def _recolour(
    x: jax.Array, images: jax.Array, draws: jax.Array, options: Augmentation
) -> jax.Array:
    """Change the colours of x [B, H, W, 3], made of the uint8 images, by draws [B, 4]."""
    away = 2.0 * draws[:, :, None, None] - 1.0
    bright, contrast, saturation = (
        1.0 + change * away[:, i]
        for i, change in enumerate((options.brightness, options.contrast, options.saturation))
    )
    angle = jnp.deg2rad(options.hue * away[:, 3])
    cos, sin = saturation * jnp.cos(angle), saturation * jnp.sin(angle)
    # Sums of integers: the same however the compiler splits them.
    sums = images.astype(jnp.int32).sum(axis=(1, 2)).astype(jnp.float32)
    grey = bright * _weighted(_YIQ[0], sums)[:, None, None] / (127.5 * math.prod(images.shape[1:3]))

    levels = (x + 1.0) * bright[..., None]  # black stays black
    luma, i, q = (_weighted(row, levels) for row in _YIQ)
    luma = grey + contrast * (luma - grey)
    turned = jnp.stack([luma, contrast * (cos * i - sin * q), contrast * (sin * i + cos * q)], -1)
    return jnp.stack([_weighted(row, turned) for row in _RGB], axis=-1) - 1.0


def _weighted(weights: tuple[float, ...], values: jax.Array) -> jax.Array:
    """Return the sum of weighted channels, [...] for [..., 3]."""
    first, second, third = (weight * values[..., i] for i, weight in enumerate(weights))
    return first + second + third


def _erase(x: jax.Array, draws: jax.Array, probability: float) -> jax.Array:
    """Make a rectangle of a share of x [B, H, W, 3] grey, by draws [B, 5]."""
    low, high = _ERASED_AREA
    area = jnp.where(draws[:, 0] < probability, low + (high - low) * draws[:, 1], 0.0)
    # As often wide as high.
    ratio = jnp.exp((1.0 - 2.0 * draws[:, 2]) * math.log(_ERASED_ASPECT))
    sides = jnp.sqrt(area * ratio), jnp.sqrt(area / ratio)
    inside = _rectangle(x.shape[1:3], *sides, draws[:, 3:5])
    return x * (1.0 - inside[..., None])


def _rectangle(
    shape: tuple[int, ...], height: jax.Array, width: jax.Array, place: jax.Array
) -> jax.Array:
    """Return 1.0 inside a rectangle of each image, 0.0 outside: float32 [B, H, W].

    Args:
      shape: (H, W).
      height, width: [B], as shares of the image's; what is more than 1 is cut.
      place: [B, 2] in [0, 1), of the rectangle among all places inside of the image.
    """
    spans = []
    for count, share, at in zip(shape, (height, width), place.T, strict=True):
        length = jnp.round(count * jnp.minimum(share, 1.0))
        first = jnp.floor(at * (count - length + 1.0))[:, None]
        number = jnp.arange(count, dtype=jnp.float32)[None]
        spans.append((number >= first) & (number < first + length[:, None]))
    return (spans[0][:, :, None] & spans[1][:, None, :]).astype(jnp.float32)


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

    return lax.platform_dependent(
        x, cpu=blur_if_any, tpu=lambda x: planes.blur(x, weights), default=blur
    )


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
