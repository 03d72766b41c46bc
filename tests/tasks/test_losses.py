import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skin_jax.tasks import losses

pytestmark = pytest.mark.usefixtures("strict_dtypes")

LOGITS = jnp.asarray(np.random.default_rng(0).normal(0, 3, (5, 8)), jnp.float32)
LABELS = jnp.array([0, 6, 3, 3, 1])


def test_cross_entropy_over_n_plus_1_is_that_over_n_minus_log_of_not_fake():
    over_all = -jax.nn.log_softmax(LOGITS, axis=-1)[jnp.arange(5), LABELS]
    over_n = losses.cross_entropy(LOGITS, LABELS)
    _, log_real = losses.log_p_fake(LOGITS, "softmax")
    np.testing.assert_allclose(over_all, over_n - log_real, rtol=1e-6)


def test_the_loss_of_a_mixed_label_is_the_mixture_of_losses():
    weights, share = jnp.arange(1.0, 9.0), jnp.array([1.0, 0.0, 0.25, 0.5, 0.5])
    others = jnp.roll(LABELS, 1)
    each = [
        [losses.classification(LOGITS[i : i + 1], to[i : i + 1], weights, 0.1) for i in range(5)]
        for to in (LABELS, others)
    ]
    found = losses.classification(LOGITS, LABELS, weights, 0.1, share)
    found += losses.classification(LOGITS, others, weights, 0.1, 1.0 - share)
    expected = np.mean(share * np.array(each[0]) + (1.0 - share) * np.array(each[1]))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("reading", losses.READINGS)
def test_p_fake_and_its_complement_sum_to_one(reading):
    log_fake, log_real = losses.log_p_fake(LOGITS, reading)
    np.testing.assert_allclose(jnp.exp(log_fake) + jnp.exp(log_real), np.ones(5), rtol=1e-6)


def test_p_fake_by_hand():
    logits = jnp.log(jnp.array([[1.0, 2.0, 3.0, 2.0]]))
    np.testing.assert_allclose(jnp.exp(losses.log_p_fake(logits, "softmax")[0]), [0.25], rtol=1e-6)
    np.testing.assert_allclose(
        jnp.exp(losses.log_p_fake(logits, "separate")[0]), [2 / 3], rtol=1e-6
    )


@pytest.mark.parametrize("reading", losses.READINGS)
def test_extreme_logits_keep_finite_losses_and_gradients(reading):
    logits = jnp.array([[100.0] + [0.0] * 7, [0.0] * 7 + [100.0]])
    for loss in (losses.minimax, losses.non_saturating):
        value, grads = jax.value_and_grad(loss)(logits, reading)
        assert np.isfinite(value)
        assert np.isfinite(grads).all()


@pytest.mark.parametrize("reading", losses.READINGS)
def test_both_generator_objectives_lower_p_fake(reading):
    before = jnp.exp(losses.log_p_fake(LOGITS, reading)[0]).mean()
    for loss in (losses.minimax, losses.non_saturating):
        stepped = LOGITS - 0.1 * jax.grad(loss)(LOGITS, reading)
        assert jnp.exp(losses.log_p_fake(stepped, reading)[0]).mean() < before


def test_minimax_saturates_where_the_discriminator_is_sure_and_non_saturating_does_not():
    sure = jnp.array([[0.0] * 7 + [20.0]])
    saturated = jnp.abs(jax.grad(losses.minimax)(sure, "softmax")).max()
    steep = jnp.abs(jax.grad(losses.non_saturating)(sure, "softmax")).max()
    assert saturated < 1e-6
    assert steep > 0.1


def test_supervised_ignores_the_fake_logit_and_weighs_by_class():
    weights = jnp.ones(7)
    moved = LOGITS.at[:, -1].add(5.0)
    np.testing.assert_allclose(
        losses.supervised(LOGITS, LABELS, weights), losses.supervised(moved, LABELS, weights)
    )
    only_class_3 = jnp.zeros(7).at[3].set(1.0)
    expected = losses.cross_entropy(LOGITS, LABELS)[2:4].sum() / 5
    np.testing.assert_allclose(losses.supervised(LOGITS, LABELS, only_class_3), expected, rtol=1e-6)


def test_classification_by_hand():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
    labels = jnp.array([0, 1])
    plain = losses.classification(logits, labels, jnp.ones(3), 0.0)
    np.testing.assert_allclose(plain, -(np.log(0.5) + np.log(0.8)) / 2, rtol=1e-6)
    # Targets (0.8, 0.1, 0.1) and (0.1, 0.8, 0.1) for s = 0.3 and three classes.
    first = -(0.8 * np.log(0.5) + 0.2 * np.log(0.25))
    second = -(0.8 * np.log(0.8) + 0.2 * np.log(0.1))
    smoothed = losses.classification(logits, labels, jnp.ones(3), 0.3)
    np.testing.assert_allclose(smoothed, (first + second) / 2, rtol=1e-6)
    weights = jnp.array([3.0, 0.5, 7.0])
    weighted = losses.classification(logits, labels, weights, 0.3)
    np.testing.assert_allclose(weighted, (3.0 * first + 0.5 * second) / 2, rtol=1e-6)


def test_smoothed_labels_ask_for_their_own_probabilities():
    labels = jnp.array([2])
    target = jnp.full((1, 7), 0.1 / 7).at[0, 2].add(0.9)
    grads = jax.grad(losses.classification)(jnp.log(target), labels, jnp.ones(7), 0.1)
    np.testing.assert_allclose(grads, np.zeros((1, 7)), atol=1e-6)


def test_classification_stays_finite_for_extreme_logits():
    logits = jnp.array([[1e4, 0.0, -1e4]])
    value, grads = jax.value_and_grad(losses.classification)(
        logits, jnp.array([2]), jnp.ones(3), 0.1
    )
    assert np.isfinite(value)
    assert np.isfinite(grads).all()


def test_pseudo_labels_count_confident_images_only_and_carry_no_gradient_through_the_label():
    logits = jnp.zeros((2, 8)).at[0, 2].set(10.0)
    expected = losses.cross_entropy(logits, jnp.array([2, 0]))[0] / 2
    np.testing.assert_allclose(losses.pseudo_label(logits, 0.95), expected, rtol=1e-5)
    grads = jax.grad(losses.pseudo_label)(logits, 0.95)
    assert np.abs(grads[0]).max() > 0
    np.testing.assert_array_equal(grads[1], np.zeros(8))


def test_feature_matching_compares_means():
    real = jnp.array([[0.0, 2.0], [2.0, 4.0]])
    np.testing.assert_allclose(losses.feature_matching(real, real[::-1]), 0.0)
    np.testing.assert_allclose(losses.feature_matching(real, real + jnp.array([[3.0, 4.0]])), 25.0)
