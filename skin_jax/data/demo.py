"""Procedural dermoscopic lesions: the embedded demo data, and the only data nobody has to download.

Seven classes with HAM10000's imbalance (no class under 2 %, so that each reaches every split) and
HAM10000's 1.34 images a lesion. A lesion's images share its parameters and differ in pose, zoom,
light, hair and noise.

What tells the classes apart is what dermoscopy looks at: outline, border, texture and structures.
Skin, lesion tone and light come from the same distributions in every class, and the simulated
camera balances each photograph to a mean colour that is drawn from them alone: the mean colour of
an image carries no information about its class.

An image depends on (seed, label, number of the lesion in its class, number of the view, size)
alone. A larger `num_images` adds images; the ids are shuffled, so they change with it. The same
arguments give the same pixels on one machine; another processor or NumPy may round a few of them
to the neighbouring value.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from skin_jax.base.errors import UserError
from skin_jax.data.classes import HAM10000, HAM10000_COUNTS
from skin_jax.data.examples import Examples, Record, digest_of

VIEWS_PER_LESION = (2, 1, 1, 1, 3, 1, 1, 1, 2, 1, 1, 1)
"""Images of successive lesions of a class, repeated: 1.33 on average, as in HAM10000."""
MIN_CLASS_IMAGES = 11  # the first 8 lesions
MIN_CLASS_SHARE = 0.02
MIN_IMAGES = len(HAM10000) * MIN_CLASS_IMAGES
MIN_IMAGE_SIZE = 32

LOCALIZATIONS = ("back", "trunk", "abdomen", "lower extremity", "upper extremity", "face", "chest")
CONFIRMATIONS = ("histo", "follow_up", "consensus", "confocal")

_CHUNK = 32  # images rendered together: their float32 fields stay in the processor's cache
_LOTS = 256  # random numbers of a lesion or a view, more than any class uses
_WHITE = np.array([0.97, 0.92, 0.88], np.float32)
_BLUE_GREY = np.array([0.36, 0.38, 0.46], np.float32)
_RED = np.array([0.64, 0.20, 0.21], np.float32)
_BLACK = np.array([0.13, 0.08, 0.08], np.float32)


def generate(num_images: int, image_size: int, seed: int) -> Examples:
    """Draws `num_images` (at least MIN_IMAGES) photographs of lesions, all of the split "train".

    They are uint8 [num_images, image_size, image_size, 3], image_size being at least
    MIN_IMAGE_SIZE; the seed is not negative.
    """
    if image_size < MIN_IMAGE_SIZE:
        raise UserError(f"the demo images need at least {MIN_IMAGE_SIZE} pixels, not {image_size}")
    plan = _plan(class_counts(num_images))
    images = np.empty((num_images, image_size, image_size, 3), np.uint8)
    order = np.random.default_rng((seed, num_images)).permutation(num_images)
    for label in range(len(HAM10000)):
        (mine,) = np.nonzero(plan[:, 0] == label)
        for chunk in np.split(mine, range(_CHUNK, len(mine), _CHUNK)):
            images[order[chunk]] = _render(label, plan[chunk], image_size, seed)
    records = _records(plan[np.argsort(order)], seed)
    return Examples(records, images, digest_of(records, images), classes=HAM10000)


def class_counts(num_images: int) -> np.ndarray:
    """Images of each class, int64 [7]: HAM10000's shares of `num_images`, with a floor.

    No class gets less than MIN_CLASS_IMAGES or MIN_CLASS_SHARE; largest remainders round the rest.
    """
    if num_images < MIN_IMAGES:
        raise UserError(f"the demo data need at least {MIN_IMAGES} images, not {num_images}")
    shares = np.array([HAM10000_COUNTS[name] for name in HAM10000.names], np.float64)
    floor = max(MIN_CLASS_IMAGES, int(np.ceil(MIN_CLASS_SHARE * num_images)))
    raised = np.zeros(len(HAM10000), bool)
    while True:
        left = num_images - floor * int(raised.sum())
        exact = np.where(raised, floor, left * shares / shares[~raised].sum())
        low = exact < floor
        if not low.any():
            break
        raised |= low
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: num_images - counts.sum()]] += 1
    return counts


def _plan(counts: np.ndarray) -> np.ndarray:
    """One row an image, int64 [N, 3]: label, number of the lesion in its class, of the view."""
    rows = []
    for label, count in enumerate(counts):
        views = np.resize(VIEWS_PER_LESION, count)
        lesion = np.repeat(np.arange(count), views)[:count]
        view = np.concatenate([np.arange(n) for n in views])[:count]
        rows.append(np.stack([np.full(count, label), lesion, view], axis=1))
    return np.concatenate(rows)


def _records(plan: np.ndarray, seed: int) -> tuple[Record, ...]:
    """A record for each row of the plan; metadata are drawn for the lesion, not its class."""
    lesions, number = np.unique(plan[:, :2], axis=0, return_inverse=True)
    # Numbered at random: a lesion's id says nothing about its class.
    names = np.random.default_rng((seed, len(lesions))).permutation(len(lesions))
    people = []
    for label, lesion in lesions:
        draw = np.random.default_rng((seed, label, lesion, 0, 1))
        age = float(np.clip(5 * round(draw.normal(52, 17) / 5), 5, 85))
        words = (("male", "female"), LOCALIZATIONS, CONFIRMATIONS)
        sex, place, confirmation = (choices[draw.integers(len(choices))] for choices in words)
        people.append((age, sex, place, confirmation))
    rows = zip(plan[:, 0].tolist(), number.reshape(-1), strict=True)
    return tuple(
        Record(f"DEMO_{i:07d}", label, f"DEMO_L{names[n]:05d}", *people[n], "train")
        for i, (label, n) in enumerate(rows)
    )


_Point = tuple[np.ndarray, np.ndarray]


class _Draws:
    """Uniform random numbers for N images, each from a stream of its own, used up in order."""

    def __init__(self, keys: Sequence[tuple[int, ...]]):
        streams = [np.random.default_rng(key).random(_LOTS, np.float32) for key in keys]
        self._lots = np.stack(streams, axis=1)[..., None, None]  # [_LOTS, N, 1, 1]
        self._used = 0

    def many(self, count: int, low: float, high: float) -> np.ndarray:
        """float32 [count, N, 1, 1] in [low, high)."""
        lots = self._lots[self._used : self._used + count]
        self._used += count
        return np.float32(low) + np.float32(high - low) * lots

    def one(self, low: float, high: float) -> np.ndarray:
        """float32 [N, 1, 1] in [low, high)."""
        return self.many(1, low, high)[0]

    def colour(self, low: Sequence[float], high: Sequence[float]) -> np.ndarray:
        """float32 [N, 1, 1, 3]: one draw for each channel."""
        pairs = zip(low, high, strict=True)
        return np.stack([self.one(a, b) for a, b in pairs], axis=-1)

    def disc(self, count: int, radius: float) -> _Point:
        """Points [count, N, 1, 1], x and y, spread evenly over a disc: a jittered sunflower."""
        k = np.arange(count, dtype=np.float32)[:, None, None, None]
        distance = radius * np.sqrt((k + self.many(count, 0.2, 0.8)) / count)
        angle = 2.4 * k + self.one(0, 2 * np.pi) + self.many(count, -0.35, 0.35)
        return distance * np.cos(angle), distance * np.sin(angle)

    def spots(
        self, count: int, spread: float, strength: tuple[float, float], radius: tuple[float, float]
    ) -> Iterable[tuple[np.ndarray, ...]]:
        """`count` spots over a disc: x, y, strength and radius of each, [N, 1, 1]."""
        centres = self.disc(count, spread)
        return zip(*centres, self.many(count, *strength), self.many(count, *radius), strict=True)


class _Canvas:
    """N photographs in the making, in the coordinates of the lesion (its radius is about 0.6).

    u, v: float32 [N, S, S]; skin, tone: colours [N, 1, 1, 3] in [0, 1]; image [N, S, S, 3].
    """

    def __init__(self, lesion: _Draws, view: _Draws, size: int):
        axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
        angle, zoom = view.one(0, 2 * np.pi), view.one(0.9, 1.15)
        x = (axis[None, None, :] - view.one(-0.12, 0.12)) / zoom
        y = (axis[None, :, None] - view.one(-0.12, 0.12)) / zoom
        mirror = np.where(view.one(0, 1) < 0.5, np.float32(-1), np.float32(1))
        self.u = np.cos(angle) * x + np.sin(angle) * y
        self.v = mirror * (np.cos(angle) * y - np.sin(angle) * x)
        self.lesion = lesion
        # Nothing in skin is straight or round: bend the coordinates, and so all that follows.
        bend_u, bend_v = 0.022 * self.waves(0.6, 4), 0.022 * self.waves(0.6, 4)
        self.u, self.v = self.u + bend_u, self.v + bend_v
        self.pixel = 2 / size
        lightness = lesion.one(0.80, 1.0)[..., None]
        self.skin = lightness * lesion.colour((0.90, 0.68, 0.56), (0.97, 0.76, 0.67))
        self.tone = self.skin * lesion.one(0.66, 0.92)[..., None]
        self.tone = self.tone * lesion.colour((0.84, 0.68, 0.58), (0.94, 0.82, 0.76))
        self.radius = lesion.one(0.54, 0.70)
        self.image = np.broadcast_to(self.skin, (*self.u.shape, 3)).copy()

    def blend(self, colour: np.ndarray, alpha: np.ndarray) -> None:
        """Paints `colour` [..., 3] over the image where `alpha` [N, S, S] in [0, 1] says so."""
        self.image += alpha[..., None] * (colour - self.image)

    def edge(self, depth: np.ndarray, width: float) -> np.ndarray:
        """1 where `depth` > 0, 0 where it is < 0, over a ramp of `width` (a pixel at least)."""
        return np.clip(depth / max(width, self.pixel) + 0.5, 0, 1)

    def outline(self, rough: float, stretch: float, lobes: int = 5) -> np.ndarray:
        """Depth under a wavy closed curve, float32 [N, S, S]: positive inside the lesion."""
        ratio = self.lesion.one(1.0, stretch)
        u, v = self.u / np.sqrt(ratio), self.v * np.sqrt(ratio)
        theta, wave = np.arctan2(v, u), np.float32(0)
        for k, phase in enumerate(self.lesion.many(lobes, 0, 2 * np.pi), start=2):
            wave = wave + np.cos(k * theta + phase) / np.sqrt(k)
        return self.radius * (1 + rough * wave) - np.hypot(u, v)

    def waves(self, wavelength: float, count: int) -> np.ndarray:
        """Band-limited noise [N, S, S] of variance 1: plane waves in all directions."""
        total = np.zeros_like(self.u)
        ranges = ((-0.4, 0.4), (0, 2 * np.pi), (0.8, 1.25))
        jitter, phases, factors = (self.lesion.many(count, *bounds) for bounds in ranges)
        for i, phase in enumerate(phases):
            angle, k = np.pi * i / count + jitter[i], 2 * np.pi * factors[i] / wavelength
            total += np.cos(k * np.cos(angle) * self.u + k * np.sin(angle) * self.v + phase)
        return total * np.float32(np.sqrt(2 / count))

    def distance(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Distance from a point, [N, S, S]."""
        return np.hypot(self.u - x, self.v - y)

    def segment(self, start: _Point, end: _Point, width: float) -> np.ndarray:
        """The alpha of a line with soft sides, [N, S, S] in [0, 1]."""
        (x, y), dx, dy = start, end[0] - start[0], end[1] - start[1]
        along = ((self.u - x) * dx + (self.v - y) * dy) / (dx * dx + dy * dy + 1e-6)
        along = np.clip(along, 0, 1)
        distance = np.hypot(self.u - x - along * dx, self.v - y - along * dy)
        return self.edge(width / 2 - distance, width)


def _paint_nv(canvas: _Canvas) -> None:
    """Nevus: round, symmetric, a regular pigment network that thins out at the border."""
    depth = canvas.outline(rough=0.025, stretch=1.2)
    body = canvas.edge(depth - 0.02, 0.14)
    canvas.blend(canvas.tone, 0.8 * body)
    k = 2 * np.pi / canvas.lesion.one(0.24, 0.28)
    turn = canvas.lesion.one(0, np.pi)
    mesh = np.zeros_like(canvas.u)
    for i in range(3):  # three plane waves at 120 degrees: pale holes in a honeycomb
        angle = turn + 2 * np.pi * i / 3
        mesh += np.cos(k * (np.cos(angle) * canvas.u + np.sin(angle) * canvas.v))
    lines = np.clip(0.55 - 0.5 * mesh, 0, 1)
    canvas.blend(0.42 * canvas.tone, lines * body * np.clip(0.3 + 2.0 * depth, 0, 0.8))


def _paint_mel(canvas: _Canvas) -> None:
    """Melanoma: asymmetric, notched and streaked border, several tones, a blue-white veil."""
    angle = np.arctan2(canvas.v, canvas.u)
    side = np.cos(angle - canvas.lesion.one(0, 2 * np.pi)) * np.hypot(canvas.u, canvas.v) / 0.6
    streaks = np.cos(13 * angle + canvas.lesion.one(0, 6))
    depth = canvas.outline(rough=0.15, stretch=1.5, lobes=6)
    depth = depth + 0.07 * streaks * np.clip(side, 0, 1) + 0.035 * canvas.waves(0.35, 6)
    body = canvas.edge(depth, 0.07)
    canvas.blend(canvas.tone, body)
    blotches = canvas.waves(0.8, 6)
    canvas.blend(0.5 * canvas.tone, 0.9 * body * canvas.edge(blotches, 1.2))
    canvas.blend(_BLACK, 0.85 * body * canvas.edge(canvas.waves(0.6, 6) + side - 0.7, 0.8))
    canvas.blend(_BLUE_GREY, 0.7 * body * canvas.edge(canvas.waves(0.7, 5) - side - 0.9, 0.8))
    canvas.blend(canvas.skin, 0.7 * body * canvas.edge(-blotches - 1.2, 0.6))


def _paint_bkl(canvas: _Canvas) -> None:
    """Seborrhoeic keratosis: sharp border, cerebriform ridges, milia-like cysts, dark openings."""
    depth = canvas.outline(rough=0.05, stretch=1.35)
    body = canvas.edge(depth, 0.03)
    canvas.blend(0.9 * canvas.tone, body)
    canvas.blend(0.6 * canvas.tone, 0.7 * body * canvas.edge(canvas.waves(0.26, 7), 1.2))
    spots = canvas.lesion.spots(14, 0.55, strength=(0.6, 1.0), radius=(0.04, 0.08))
    for i, (x, y, strength, radius) in enumerate(spots):
        alpha = canvas.edge(radius - canvas.distance(x, y), 0.05) * canvas.edge(depth - 0.05, 0.05)
        canvas.blend(_WHITE if i % 3 else _BLACK, 0.95 * strength * alpha)


def _paint_bcc(canvas: _Canvas) -> None:
    """Basal cell carcinoma: pale and shiny, arborising vessels, blue-grey ovoid globules."""
    body = canvas.edge(canvas.outline(rough=0.07, stretch=1.3), 0.14)
    canvas.blend(0.55 * canvas.skin + 0.45 * canvas.tone, body)
    canvas.blend(_WHITE, 0.3 * body * canvas.edge(canvas.waves(0.7, 5) - 0.6, 1.0))
    globules = canvas.lesion.spots(6, 0.5, strength=(0.5, 0.9), radius=(0.07, 0.14))
    for x, y, strength, radius in globules:
        inside = canvas.edge(radius - canvas.distance(x, y), 0.10)
        canvas.blend(_BLUE_GREY, strength * body * inside)
    vessels = np.zeros_like(canvas.u)
    for start in (0.0, np.pi):  # two trees that enter from opposite sides
        heading = start + canvas.lesion.one(-0.5, 0.5)
        away = canvas.lesion.one(0.60, 0.75)
        root = (away * np.cos(heading), away * np.sin(heading))
        _grow(canvas, vessels, root, heading + np.pi + canvas.lesion.one(-0.5, 0.5))
    canvas.blend(_RED, 0.9 * vessels * np.clip(body + 0.2, 0, 1))


def _grow(
    canvas: _Canvas,
    vessels: np.ndarray,
    root: _Point,
    heading: np.ndarray,
    length: float = 0.36,
    width: float = 0.05,
    forks: int = 2,
) -> None:
    """Draws a branch and, `forks` times over, the two thinner ones it ends in, into `vessels`."""
    bent = heading + canvas.lesion.one(-0.3, 0.3)
    tip = (root[0] + length * np.cos(bent), root[1] + length * np.sin(bent))
    np.maximum(vessels, canvas.segment(root, tip, width), out=vessels)
    for turn in (-1, 1) if forks else ():
        away = bent + turn * canvas.lesion.one(0.45, 0.9)
        _grow(canvas, vessels, tip, away, 0.75 * length, 0.8 * width, forks - 1)


def _paint_akiec(canvas: _Canvas) -> None:
    """Actinic keratosis: diffuse border, no network, rosettes and flakes of white scale on red."""
    body = canvas.edge(canvas.outline(rough=0.08, stretch=1.4) - 0.02, 0.42)
    canvas.blend(canvas.tone, 0.85 * body)
    canvas.blend(_RED, 0.35 * body * canvas.edge(canvas.waves(0.45, 5), 1.0))
    broken = np.clip(0.75 + 0.45 * canvas.waves(0.16, 6), 0, 1)
    rosettes = canvas.lesion.spots(9, 0.58, strength=(0.6, 1.0), radius=(0.08, 0.13))
    for x, y, strength, radius in rosettes:
        distance = canvas.distance(x, y)
        ring = canvas.edge(0.035 - np.abs(distance - radius), 0.06) * broken
        canvas.blend(_WHITE, strength * np.clip(1.4 * body, 0, 1) * ring)
        canvas.blend(0.6 * canvas.tone, 0.6 * body * canvas.edge(radius - 0.06 - distance, 0.05))
    canvas.blend(_WHITE, 0.7 * body * canvas.edge(canvas.waves(0.3, 6) - 1.5, 0.5))


def _paint_df(canvas: _Canvas) -> None:
    """Dermatofibroma: a white scar-like centre, a fine pigmented ring that fades into the skin."""
    depth = canvas.outline(rough=0.03, stretch=1.15)
    body = canvas.edge(depth - 0.06, 0.26)
    spokes = np.cos(22 * np.arctan2(canvas.v, canvas.u) + 2 * canvas.waves(0.6, 3))
    canvas.blend(0.75 * canvas.tone, body * (0.85 + 0.15 * spokes))
    scar = canvas.edge(depth - canvas.lesion.one(0.26, 0.36) + 0.03 * canvas.waves(0.3, 6), 0.16)
    canvas.blend(0.75 * _WHITE + 0.25 * canvas.skin, 0.8 * scar)
    canvas.blend(canvas.skin, 0.5 * scar * canvas.edge(canvas.waves(0.22, 6) - 0.5, 0.8))


def _paint_vasc(canvas: _Canvas) -> None:
    """Vascular lesion: round lacunae, red to purple, parted by pale septa; a sharp lobed border."""
    x, y = canvas.lesion.disc(9, 0.52)
    scale = canvas.radius / 0.62
    nearest = np.full_like(canvas.u, 9)
    second = np.full_like(canvas.u, 9)
    for i, size in enumerate(canvas.lesion.many(9, 0.85, 1.15)):
        distance = canvas.distance(scale * x[i], scale * y[i]) / size
        second = np.minimum(second, np.maximum(nearest, distance))
        nearest = np.minimum(nearest, distance)
    canvas.blend(0.5 * canvas.skin + 0.5 * canvas.tone, canvas.edge(0.24 * scale - nearest, 0.05))
    cells = canvas.edge(0.19 * scale - nearest, 0.05) * canvas.edge(second - nearest - 0.06, 0.07)
    purple = canvas.lesion.one(0, 1)[..., None] * np.array([-0.15, 0.02, 0.12], np.float32)
    canvas.blend(0.85 * _RED + purple, 0.85 * cells)
    thickness = canvas.edge(0.12 * scale - nearest, 0.2) * canvas.edge(canvas.waves(0.5, 5), 1.5)
    canvas.blend(_BLACK, 0.6 * cells * thickness)


_PAINTERS = (_paint_akiec, _paint_bcc, _paint_bkl, _paint_df, _paint_mel, _paint_nv, _paint_vasc)
"""In the order of the labels."""


def _render(label: int, plan: np.ndarray, size: int, seed: int) -> np.ndarray:
    """uint8 [N, size, size, 3]: the photographs of the plan's rows, all of one class."""
    # Trailing zeros don't change a seed sequence, so views count from 1.
    views = [(seed, label, i, 1 + j) for _, i, j in plan.tolist()]
    view = _Draws(views)
    canvas = _Canvas(_Draws([key[:3] for key in views]), view, size)
    _PAINTERS[label](canvas)
    mottle = 0.03 * canvas.waves(0.4, 6) + 0.02 * canvas.waves(0.13, 6)
    canvas.image *= (1 + mottle)[..., None]
    _balance(canvas, view)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = axis[None, None, :], axis[None, :, None]
    _light(canvas.image, view, x, y)
    _hair(canvas.image, view, x, y)
    noise = np.empty_like(canvas.image)
    for key, field in zip(views, noise, strict=True):
        np.random.default_rng((*key, 1)).standard_normal(out=field, dtype=np.float32)
    pixels = canvas.image + 0.012 * noise
    return np.rint(255 * np.clip(pixels, 0.02, 0.98)).astype(np.uint8)


def _balance(canvas: _Canvas, view: _Draws) -> None:
    """Apply the camera's automatic contrast and white balance, in place.

    The contrast moves most of the way to a drawn one; the mean becomes a mix of skin and tone under
    the view's light. None of these depends on the class, so neither does the mean colour.
    """
    light = view.one(0.88, 1.06)[..., None] * view.colour((0.97, 0.98, 0.96), (1.03, 1.02, 1.04))
    wanted = light * (0.68 * canvas.skin + 0.32 * canvas.tone)
    image = canvas.image
    image *= wanted / image.mean(axis=(1, 2), keepdims=True)
    contrast = image.mean(axis=3).std(axis=(1, 2))[:, None, None]
    gain = (view.one(0.09, 0.16) / contrast) ** np.float32(0.7)
    image += (gain - 1)[..., None] * (image - wanted)


def _light(image: np.ndarray, view: _Draws, x: np.ndarray, y: np.ndarray) -> None:
    """Uneven light: a gentle slope across the image and darker corners, in place."""
    slope = view.one(-0.06, 0.06) * x + view.one(-0.06, 0.06) * y
    corners = view.one(0.0, 0.10) * (x * x + y * y - np.float32(2 / 3))
    image *= (1 + slope - corners)[..., None]


def _hair(image: np.ndarray, view: _Draws, x: np.ndarray, y: np.ndarray, most: int = 5) -> None:
    """Up to `most` thin dark curved hairs across the image, in place; half the views have none."""
    size = image.shape[1]
    number = np.clip(view.one(-most, most), 0, most)
    shade = view.one(0.1, 0.3)[..., None] * np.array([1.0, 0.8, 0.7], np.float32)
    main = view.one(0, np.pi)
    for k in range(most):
        angle = main + view.one(-0.6, 0.6)
        along = np.cos(angle) * x + np.sin(angle) * y
        across = np.cos(angle) * y - np.sin(angle) * x
        offset, bend = view.one(-0.9, 0.9), view.one(-0.35, 0.35)
        distance = np.abs(across - offset - bend * along * along)
        distance = distance / np.sqrt(1 + 4 * (bend * along) ** 2)
        width = view.one(0.012, 0.024)
        alpha = np.clip((width - distance) * (size / 2) + 0.5, 0, 1) * (number > k)
        image += (0.75 * np.minimum(alpha, width * size))[..., None] * (shade - image)
