import io

import numpy as np
import pytest
from PIL import Image

from skin_jax.data.classes import HAM10000
from skin_jax.report import heatmap


def opened(content: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(content))
    assert image.format == "PNG"
    return np.asarray(image)


@pytest.mark.parametrize(("size", "side"), [(32, 224), (64, 256), (224, 224), (512, 512)])
def test_the_image_is_enlarged_by_a_whole_factor(size, side):
    image = np.full((size, size, 3), 128, np.uint8)
    picture = opened(heatmap.overlay(image, [np.zeros((2, 2))], "mel"))
    assert picture.shape[1] > 2 * side
    assert picture.shape[0] > side
    # Nothing hot: both panels show the image as it is.
    np.testing.assert_array_equal(picture[:side, :side], np.full((side, side, 3), 128))
    np.testing.assert_array_equal(picture[:side, -side:], picture[:side, :side])


def test_heat_covers_where_it_is_and_several_maps_are_averaged():
    image = np.full((224, 224, 3), 128, np.uint8)
    heat = np.zeros((4, 4), np.float32)
    heat[0, 0] = 1.0
    one = opened(heatmap.overlay(image, [heat], "mel")).astype(int)[:224, -224:]
    assert np.abs(one[20, 20] - 128).max() > 40
    np.testing.assert_array_equal(one[180:, 180:], np.full((44, 44, 3), 128))
    # Maps of other sizes, and one that shows nothing: the colour is paler.
    two = opened(heatmap.overlay(image, [heat, np.zeros((7, 7))], "mel")).astype(int)[:224, -224:]
    assert 0 < np.abs(two[20, 20] - 128).max() < np.abs(one[20, 20] - 128).max()


@pytest.mark.parametrize(
    "title", [*map(HAM10000.titled, range(7)), "a name that would go on and on " * 5]
)
def test_the_caption_fits_and_tells_the_classes_apart(title):
    image, usual = np.zeros((224, 224, 3), np.uint8), HAM10000.titled(2)
    captions = [f"{each}  100.0%" for each in (title, usual)]
    strips = [opened(heatmap.overlay(image, [np.zeros((2, 2))], c))[224:] for c in captions]
    assert (strips[0] < 128).any()
    assert (title == usual) == np.array_equal(*strips)
    inked = np.flatnonzero((strips[0] < 255).any(axis=(0, 2)))
    assert np.diff(inked).max() > 15  # between the words and the scale at the right end
