import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skin_jax.models import fastgan
from skin_jax.models.efficientnet_lite import EfficientNetLite, Stage
from skin_jax.models.fastgan import Discriminator, Generator, mixing, projected

KEY = jax.random.key(0)

# One block at each of the strides that are tapped.
TINY = EfficientNetLite(
    1,
    stages=tuple(Stage(1, features, 1, 3, 2) for features in (8, 16, 24, 32)),
    stem_features=4,
    last_features=8,
)
CHANNELS = (8, 16, 24, 32)


def one_hot(*labels):
    return jax.nn.one_hot(jnp.asarray(labels), 3)


@pytest.fixture(scope="module")
def generator():
    """A small generator, its variables, and a jitted function of noise, classes, ramp.

    The images are those of training, whose batch norm makes small differences of z large.
    """
    network = Generator(32, width=4)
    variables = jax.jit(lambda: network.init(KEY, jnp.ones((1, 8)), one_hot(0), train=True))()

    @jax.jit
    def images(z, classes, ramp=1.0):
        return network.apply(variables, z, classes, ramp, train=True, mutable=["batch_stats"])

    return network, variables, images


@pytest.mark.parametrize("size", fastgan.IMAGE_SIZES)
def test_images_have_every_size_and_maps_the_papers_channels(size):
    network = Generator(size)
    images, variables = jax.eval_shape(
        lambda: network.init_with_output(KEY, jnp.ones((2, 256)), jnp.ones((2, 7)), train=True)
    )
    assert (images.shape, images.dtype) == ((2, size, size, 3), jnp.float32)
    params = variables["params"]
    assert params["layer4"]["kernel"].shape == (256, 4, 4, 2 * 1024)
    channels = {4: 1024, 8: 512, 16: 256, 32: 128, 64: 128, 128: 64, 256: 32}
    for small in (8, 16, 32, 64, 128, 256):
        name = f"layer{small}"
        assert (name in params) == (small <= size)
        if small <= size:
            assert params[name]["kernel"].shape == (
                *(3, 3, channels[small // 2]),
                2 * channels[small],
            )
    assert params["image"]["kernel"].shape == (3, 3, channels[size], 3)
    skips = {name for name in params if name.startswith("skip")}
    assert skips == {
        f"skip{big}_{part}"
        for big in (64, 128, 256)
        if big <= size
        for part in ("squeeze", "excite")
    }
    conditional = {name for name in params if name.startswith("class")}
    assert {name.split("_")[0] for name in conditional} == {
        f"class{at}" for at in (16, 32, 64, 128, 256) if at <= size
    }


def test_other_sizes_are_refused():
    with pytest.raises(ValueError, match="must be 32, 64, 128 or 256, not 48"):
        Generator(48).init(KEY, jnp.ones((1, 8)), one_hot(0), train=True)


def test_classes_change_images_as_far_as_the_ramp_lets_them(generator):
    _, _, images = generator
    z = jax.random.normal(KEY, (3, 8))
    first, second = one_hot(0, 0, 0), one_hot(1, 1, 1)

    def change(ramp):
        return float(jnp.max(jnp.abs(images(z, first, ramp)[0] - images(z, second, ramp)[0])))

    assert change(0.0) == 0.0
    assert 1e-5 < change(0.1) < change(1.0)
    between = images(z, (first + second) / 2)[0]
    assert not np.allclose(between, images(z, first)[0], atol=1e-5)


def test_images_differ_less_with_shorter_noise(generator):
    network, variables, _ = generator
    z = jax.random.normal(KEY, (3, 8))

    @jax.jit
    def spread(truncation):
        found = network.apply(variables, truncation * z, one_hot(0, 0, 0), train=False)
        return jnp.max(jnp.std(found, axis=0))

    assert float(spread(0.0)) < 1e-6 < float(spread(0.5)) < float(spread(1.0))


def test_training_updates_statistics_and_singular_vectors(generator):
    _, variables, images = generator
    z, classes = jax.random.normal(KEY, (3, 8)), one_hot(0, 1, 2)
    _, updates = images(z, classes)
    before, after = variables["batch_stats"], updates["batch_stats"]
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert np.all(np.isfinite(new))
        assert not np.array_equal(old, new)


@pytest.mark.parametrize(("size", "logits"), [(128, 1), (224, 16), (256, 25)])
def test_each_discriminator_gives_as_many_logits(size, logits):
    features = [
        jnp.zeros((2, size // stride, size // stride, channels))
        for stride, channels in zip((2, 4, 8, 16), (64, 64, 128, 256), strict=True)
    ]
    found, variables = jax.eval_shape(
        lambda: Discriminator().init_with_output(KEY, features, jnp.ones((2, 7)), train=True)
    )
    assert (found.shape, found.dtype) == ((2, 4 * logits), jnp.float32)
    widths = {
        i: [variables["params"][f"scale{i}_layer{j + 1}"]["kernel"].shape[-1] for j in range(4 - i)]
        for i in range(4)
    }
    assert widths == {0: [64, 128, 256, 512], 1: [128, 256, 512], 2: [256, 512], 3: [512]}


def test_logits_are_those_of_real_plus_the_ramp_times_those_of_the_class():
    network = Discriminator(width=2)
    features = [jax.random.normal(KEY, (3, side, side, 4)) for side in (16, 8)]
    variables = jax.jit(lambda: network.init(KEY, features, one_hot(0, 0, 0), train=True))()

    @jax.jit
    def logits(classes, ramp):
        return network.apply(
            variables, features, classes, ramp, train=True, mutable=["batch_stats"]
        )[0]

    first, second = one_hot(0, 0, 0), one_hot(1, 2, 1)
    plain = logits(first, 0.0)
    np.testing.assert_array_equal(plain, logits(second, 0.0))
    whole = logits(second, 1.0)
    assert np.abs(whole - plain).min() > 1e-6
    np.testing.assert_allclose(logits(second, 0.5), (plain + whole) / 2, atol=1e-5)


def test_features_too_small_for_the_discriminators_are_refused():
    features = [jnp.zeros((1, side, side, 4)) for side in (8, 4)]
    with pytest.raises(ValueError, match=r"4x4 are too small: .* at least 128x128"):
        Discriminator().init(KEY, features, one_hot(0), train=True)


def test_the_mixing_is_a_function_of_the_seed():
    first, again, other = mixing(1, CHANNELS, 16), mixing(1, CHANNELS, 16), mixing(2, CHANNELS, 16)
    shapes = [[matrix.shape for matrix in matrices] for matrices in first]
    assert shapes == [[(8, 16), (16, 16)], [(16, 16), (32, 16)], [(24, 32), (64, 32)], [(32, 64)]]
    for a, b, c in zip(*map(jax.tree.leaves, (first, again, other)), strict=True):
        assert a.dtype == np.float32
        np.testing.assert_array_equal(a, b)
        assert not np.allclose(a, c, atol=0.01)
        # A matrix keeps the size of what it is applied to.
        assert np.std(a) * np.sqrt(len(a)) == pytest.approx(1.0, abs=0.25)


@pytest.fixture(scope="module")
def frozen():
    """The tiny frozen network: images [B, S, S, 3] -> its mixed features, and the taps."""
    variables = jax.jit(lambda: TINY.init(KEY, jnp.zeros((1, 64, 64, 3)), train=False))()
    matrices = mixing(0, CHANNELS, 4)

    def features(images):
        return projected(TINY, variables, images, matrices, 128)

    def taps(images):
        images = jax.image.resize(images, (len(images), 128, 128, 3), "bilinear")
        return fastgan.efficientnet_lite.taps(TINY, variables, images)

    return matrices, features, taps


def test_deeper_features_are_doubled_and_mixed_in(frozen):
    matrices, features, taps = frozen
    images = jax.random.uniform(KEY, (2, 64, 64, 3), minval=-1.0)
    found, maps = jax.jit(lambda x: (features(x), taps(x)))(images)
    assert [x.shape for x in found] == [
        (2, side, side, channels)
        for side, channels in zip((64, 32, 16, 8), (4, 4, 8, 16), strict=True)
    ]
    for i, x in enumerate(found):
        y = jnp.tensordot(maps[i], matrices[i][0], axes=1)
        if i < 3:
            y += jnp.tensordot(found[i + 1], matrices[i][1], axes=1)
        doubled = jax.image.resize(y, x.shape, "bilinear")
        np.testing.assert_allclose(x, doubled, atol=1e-5)


def test_gradients_reach_the_images_through_the_frozen_features(frozen):
    _, features, _ = frozen
    images = jax.random.uniform(KEY, (1, 64, 64, 3), minval=-1.0)

    def loss(images):
        return sum(jnp.sum(jnp.sin(x)) for x in features(images))

    gradient = jax.jit(jax.grad(loss))(images)
    assert np.mean(np.abs(gradient) > 1e-6) > 0.99
    # Along the gradient, where rounding is small beside the change.
    step = 1e-2 * gradient / jnp.linalg.norm(gradient.ravel())
    both = jax.jit(lambda: (loss(images + step), loss(images - step)))()
    slope = float(both[0] - both[1]) / 2e-2
    assert slope == pytest.approx(float(jnp.linalg.norm(gradient.ravel())), rel=0.02)


def test_bf16_computes_in_bf16_and_keeps_float32():
    network = TINY.clone(dtype=jnp.bfloat16)
    generator = Generator(32, 4, dtype=jnp.bfloat16)
    discriminator = Discriminator(4, dtype=jnp.bfloat16)
    z, classes = jnp.ones((2, 8)), one_hot(0, 1)

    def everything(key):
        images, g = generator.init_with_output(key, z, classes, train=True)
        variables = network.init(key, images, train=False)
        features = projected(network, variables, images, mixing(0, CHANNELS, 4), 128)
        logits, d = discriminator.init_with_output(key, features, classes, train=True)
        return images, features, logits, g, d

    images, features, logits, g, d = jax.eval_shape(everything, KEY)
    assert images.dtype == logits.dtype == jnp.float32
    assert {x.dtype for x in features} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves((g, d))} == {jnp.dtype(jnp.float32)}
