import numpy as np
import pytest

from skin_jax.base.errors import UserError
from skin_jax.data import non_lesions
from skin_jax.eval import familiarity

RNG = np.random.default_rng(0)
MIXING = RNG.normal(size=(6, 6))
TRAIN, VAL = RNG.normal(size=(2000, 6)) @ MIXING + 3, RNG.normal(size=(500, 6)) @ MIXING + 3


def test_distances_are_mahalanobis_s():
    reference = familiarity.fit(TRAIN, VAL)
    away = VAL - TRAIN.mean(axis=0)
    expected = np.einsum("ni,ij,nj->n", away, np.linalg.inv(np.cov(TRAIN.T, bias=True)), away)
    np.testing.assert_allclose(reference.distances(VAL), expected, rtol=1e-3)


def test_the_threshold_flags_one_validation_image_in_twenty_and_what_is_far_away():
    reference = familiarity.fit(TRAIN, VAL)
    flagged = reference.percentile(VAL) > familiarity.FLAGGED_ABOVE
    assert flagged.mean() == pytest.approx(0.05, abs=0.003)
    assert reference.percentile(VAL[:1] + 100.0)[0] == 100.0
    assert reference.percentile(TRAIN.mean(axis=0)[None])[0] == 0.0


def test_traits_that_never_change_do_not_divide_by_zero():
    constant = np.ones((50, 3))
    reference = familiarity.fit(constant, constant)
    assert reference.distances(constant).max() == 0.0
    assert np.isfinite(reference.distances(constant + 1.0)).all()


def test_a_reference_is_read_back(tmp_path):
    assert familiarity.read(tmp_path) is None
    reference = familiarity.fit(TRAIN, VAL)
    familiarity.write(tmp_path, reference)
    found = familiarity.read(tmp_path)
    for name, array in reference._asdict().items():
        np.testing.assert_array_equal(getattr(found, name), array)
    (tmp_path / familiarity.FILE_NAME).write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match=r"reference.npz is damaged"):
        familiarity.read(tmp_path)


@pytest.mark.parametrize("size", [32, 96])
def test_pictures_of_no_lesions_are_of_five_kinds_and_the_same_each_time(size):
    skin = np.full((2, size, size, 3), 200, np.uint8)
    skin[:, size // 4 : -size // 4, size // 4 : -size // 4] = 20  # the lesion
    drawn = non_lesions.draw(20, size, skin)
    assert {kind: images.shape for kind, images in drawn.items()} == dict.fromkeys(
        ("plain colours", "noise", "stripes and checks", "text", "pieces of skin"),
        (4, size, size, 3),
    )
    assert (drawn["plain colours"].std(axis=(1, 2)) == 0).all()
    for kind in ("noise", "stripes and checks", "text"):
        assert (drawn[kind].std(axis=(1, 2, 3)) > 1).all()
    assert (drawn["pieces of skin"] == 200).all()  # nothing of the lesion
    again = non_lesions.draw(20, size, skin)
    assert all((again[kind] == images).all() for kind, images in drawn.items())
