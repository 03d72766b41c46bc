import re

import numpy as np
import pytest

from skin_jax.data.classes import Classes
from skin_jax.report import answer

CLASSES = Classes.of(["mel", "<b>odd</b>", "nv"])


def told(percentile=None, **changed) -> str:
    chosen = {"calibrated": True, "flagged_above": 95.0, "picture": None} | changed
    return answer.answer(CLASSES, np.array([0.0003, 0.9, 0.0997]), percentile=percentile, **chosen)


def test_classes_are_listed_from_the_likeliest_on_and_nothing_small_is_said_to_be_0():
    html = told()
    assert "Most likely: <b>&lt;b&gt;odd&lt;/b&gt;</b>, 90.0%" in html
    shares = re.findall(r"<b>([^<]*%)</b></li>", html)
    assert shares == ["90.0%", "10.0%", "&lt;0.1%"]
    assert "<b>odd" not in html
    assert "<img" not in html


@pytest.mark.parametrize(
    ("percentile", "flagged", "said"),
    [
        (None, False, "this run cannot say"),
        (40.2, False, "40% of the validation images are more like the training images"),
        (95.0, False, "95% of the validation images"),
        (99.96, True, "99% of the validation images"),
        (100.0, True, "All of the validation images"),
    ],
)
def test_a_photo_unlike_the_training_images_is_flagged(percentile, flagged, said):
    html = told(percentile)
    assert ("Unlike the training images" in html) == flagged
    assert said in html


def test_what_is_not_calibrated_says_so():
    assert "not calibrated" in told(calibrated=False)
    assert "not calibrated" not in told()


def test_pictures_need_no_file():
    images = np.zeros((3, 8, 8, 3), np.uint8)
    html = answer.pictures(images, "a <caption>")
    assert html.count('src="data:image/png;base64,') == 3
    assert "a &lt;caption&gt;, 3" in html
    assert 'class="drawn walk"' in answer.pictures(images, "", walk=True)
    assert answer.problem("<oh>") == '<p class="problem" role="alert">&lt;oh&gt;</p>'
