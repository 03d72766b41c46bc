"""The demo data: reproducible, imbalanced like HAM10000, learnable, but not by colour."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skin_jax.base.errors import BAD_INPUT, UserError
from skin_jax.data import demo
from skin_jax.data.classes import HAM10000, HAM10000_COUNTS
from skin_jax.data.examples import Examples


@pytest.fixture(scope="module")
def examples() -> Examples:
    return demo.generate(1600, 32, 0)


def balanced_accuracy(features: np.ndarray, examples: Examples, components: int = 0) -> float:
    """Of a logistic regression fitted on 70 % of the lesions of each class, tested on 30 %."""
    labels = examples.labels
    lesions = np.array([record.lesion_id for record in examples.records])
    train = np.zeros(len(labels), bool)
    for label in range(len(HAM10000)):
        mine = np.unique(lesions[labels == label])
        train |= np.isin(lesions, mine[: round(0.7 * len(mine))])
    steps = [PCA(components, random_state=0)] if components else []
    model = LogisticRegression(class_weight="balanced", max_iter=2000)
    model = make_pipeline(StandardScaler(), *steps, model)
    model.fit(features[train], labels[train])
    return float(balanced_accuracy_score(labels[~train], model.predict(features[~train])))


def structure_features(images: np.ndarray) -> np.ndarray:
    """Grey images without their mean and contrast: radial profiles and the power spectrum."""
    grey = images.mean(axis=3, dtype=np.float64)
    grey -= grey.mean(axis=(1, 2), keepdims=True)
    grey /= grey.std(axis=(1, 2), keepdims=True)
    size = grey.shape[1]
    axis = np.arange(size) - (size - 1) / 2
    radius = np.hypot(axis[:, None], axis[None, :])
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None, :]) * size
    power = np.log(np.abs(np.fft.fft2(grey)) ** 2 + 1e-3)
    slope = np.hypot(*np.gradient(grey, axis=(1, 2)))
    columns = []
    for r in range(0, size // 2, 2):
        ring = (radius >= r) & (radius < r + 2)
        band = (frequency >= r) & (frequency < r + 2)
        columns += [grey[:, ring].mean(1), grey[:, ring].std(1), slope[:, ring].mean(1)]
        columns += [power[:, band].mean(1)]
    return np.stack(columns, axis=1)


def test_same_arguments_give_the_same_examples() -> None:
    a, b = demo.generate(80, 32, 3), demo.generate(80, 32, 3)
    assert a.digest == b.digest
    assert a.records == b.records
    np.testing.assert_array_equal(a.images, b.images)
    assert demo.generate(80, 32, 4).digest != a.digest


def test_more_images_keep_the_images() -> None:
    few, more = demo.generate(80, 32, 1), demo.generate(120, 32, 1)
    pixels = {image.tobytes() for image in more.images}
    assert len(pixels) == 120
    assert all(image.tobytes() in pixels for image in few.images)


def test_records(examples: Examples) -> None:
    assert (examples.classes, examples.unit) == (HAM10000, "lesion")
    ids = [record.image_id for record in examples.records]
    assert ids[12] == "DEMO_0000012"
    assert ids == sorted(set(ids))
    for record in examples.records:
        assert record.official_split == "train"
        assert record.path is None
        assert record.lesion_id.startswith("DEMO_L")
        assert 5 <= record.age <= 85
        assert record.sex in ("male", "female")
        assert record.localization in demo.LOCALIZATIONS
        assert record.confirmation in demo.CONFIRMATIONS


def test_classes_come_in_no_order(examples: Examples) -> None:
    labels = examples.labels
    assert all(set(quarter) == set(range(7)) for quarter in np.split(labels, 4))


@pytest.mark.parametrize("num_images", [77, 100, 555, 2000, 10015])
def test_class_counts(num_images: int) -> None:
    counts = demo.class_counts(num_images)
    floor = max(11, int(np.ceil(0.02 * num_images)))
    assert counts.sum() == num_images
    assert counts.min() >= floor
    ham = np.array([HAM10000_COUNTS[name] for name in HAM10000.names])
    common = counts > floor
    if common.any():
        shares = counts[common] / counts[common].sum() - ham[common] / ham[common].sum()
        assert np.abs(shares).max() <= 1 / counts[common].sum()


def test_imbalance_is_that_of_ham10000(examples: Examples) -> None:
    counts = np.bincount(examples.labels, minlength=7)
    np.testing.assert_array_equal(counts, demo.class_counts(1600))
    ham = np.array([HAM10000_COUNTS[name] for name in HAM10000.names]) / sum(
        HAM10000_COUNTS.values()
    )
    np.testing.assert_allclose(counts / 1600, ham, atol=0.02)


def test_lesions_with_several_images(examples: Examples) -> None:
    lesions = defaultdict(set)
    for record in examples.records:
        lesions[record.lesion_id].add((record.label, record.age, record.sex, record.localization))
    assert all(len(shared) == 1 for shared in lesions.values())
    images = Counter(record.lesion_id for record in examples.records)
    assert 1600 / len(images) == pytest.approx(10015 / 7470, abs=0.03)
    assert set(images.values()) == {1, 2, 3}
    per_class = Counter(next(iter(shared))[0] for shared in lesions.values())
    assert min(per_class.values()) >= 24


def test_images_of_a_lesion_differ_but_share_its_shape(examples: Examples) -> None:
    """In features that ignore the pose, views of a lesion are nearer than others of its class."""
    features = StandardScaler().fit_transform(structure_features(examples.images))
    lesions = np.array([record.lesion_id for record in examples.records])
    nevi = np.flatnonzero(examples.labels == HAM10000.index("nv"))[:400]
    distance = np.linalg.norm(features[nevi][:, None] - features[nevi][None], axis=2)
    same = lesions[nevi][:, None] == lesions[nevi][None]
    np.fill_diagonal(same, False)
    assert distance[same].min() > 0.1
    assert np.median(distance[same]) < 0.9 * np.median(distance[~same])


def test_pixels(examples: Examples) -> None:
    images = examples.images
    assert images.dtype == np.uint8
    assert images.shape == (1600, 32, 32, 3)
    assert ((images < 10) | (images > 245)).mean() < 0.03
    assert images.std(axis=(1, 2)).min() > 8  # no blank image
    assert images.mean(axis=(1, 2)).std(axis=0).min() > 8  # skin and light vary
    red, green, blue = images.mean(axis=(0, 1, 2))
    assert red > green > blue  # skin
    assert len({image.tobytes() for image in images}) == 1600


def test_mean_colour_does_not_tell_the_class(examples: Examples) -> None:
    assert balanced_accuracy(examples.images.mean(axis=(1, 2)), examples) < 0.40


def test_structure_tells_the_class(examples: Examples) -> None:
    """Fails, at about 0.14, as soon as the classes look alike."""
    assert balanced_accuracy(structure_features(examples.images), examples, components=20) > 0.60


@pytest.mark.parametrize("image_size", [48, 64])
def test_size_does_not_change_the_picture(image_size: int) -> None:
    """The same lesions, only sharper: block means at both sizes agree but for noise and edges."""

    def blocks(size: int) -> np.ndarray:
        images = demo.generate(77, size, 2).images.astype(np.float64)
        return images.reshape(77, 8, size // 8, 8, size // 8, 3).mean(axis=(2, 4))

    assert np.abs(blocks(image_size) - blocks(32)).mean() < 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((76, 32, 0), "at least 77 images"), ((100, 31, 0), "at least 32")],
)
def test_bad_arguments(arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        demo.generate(*arguments)
    assert caught.value.exit_code == BAD_INPUT
