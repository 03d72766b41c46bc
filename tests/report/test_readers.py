import numpy as np
import pytest

from skin_jax.eval import readers
from skin_jax.report.readers import conclusion

N = 50
GENERATED = np.arange(2 * N) < N


def scores(*right):
    """Of readers who are right about the first so many images of each kind."""
    first = np.arange(2 * N) % N
    return readers.detection(
        np.stack([np.where(first < count, GENERATED, ~GENERATED) for count in right], axis=1),
        GENERATED,
    )


@pytest.mark.parametrize(
    ("right", "start"),
    [
        ([45], "This reader tells generated from real images (accuracy 0.90 (0.83 to 0.94), where"),
        ([5], "This reader tells generated from real images, but takes the generated for the real"),
        ([26], "It is not shown that this reader tells generated from real images (accuracy 0.52"),
        ([40, 42, 44], "Readers tell generated from real images (accuracy 0.84"),
        ([10, 8, 6], "Readers tell generated from real images, but take the generated for the"),
        (
            [25, 24, 26],
            "It is not shown that readers tell generated from real images (accuracy 0.5",
        ),
    ],
)
def test_the_conclusion_says_what_the_interval_shows(right, start):
    said = conclusion(scores(*right))
    assert said.startswith(start)
    assert ("not shown" in said) == ("does not show that nobody can" in said)
    assert ("Of other readers, a study with one says nothing" in said) == (len(right) == 1)


def test_two_readers_who_differ_say_little_of_others():
    said = conclusion(scores(26, 48))
    assert said.startswith("It is not shown that readers tell")
    assert "These 2 did, with d' " in said
    assert "too few or too different to say it of others" in said
    assert "These 2" not in conclusion(scores(25, 25))
