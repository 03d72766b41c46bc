import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from skin_jax.tasks import state as state_lib


def make_state(use_ema: bool = False) -> state_lib.GanState:
    optimizer = optax.adam(0.1)
    networks = [
        state_lib.Network.create({"params": {"w": jnp.full((3,), value)}}, optimizer)
        for value in (1.0, 2.0)
    ]
    return state_lib.GanState.create(*networks, use_ema=use_ema)


def make_classifier_state(use_ema: bool = False) -> state_lib.ClassifierState:
    variables = {"params": {"w": jnp.full((3,), 1.0)}, "batch_stats": {"mean": jnp.zeros(2)}}
    network = state_lib.Network.create(variables, optax.adam(0.1))
    return state_lib.ClassifierState.create(network, use_ema=use_ema)


def stepped(state: state_lib.GanState, by: float = 1.0) -> state_lib.GanState:
    generator = state.generator.replace(params={"w": state.generator.params["w"] + by})
    return state.replace(step=state.step + 1, generator=generator)


def test_guard_takes_a_finite_step():
    new = stepped(make_state())
    assert state_lib.digest(state_lib.guard(make_state(), new, {"loss": jnp.ones(())})) == (
        state_lib.digest(new)
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_guard_undoes_a_step_that_is_not_finite_and_counts_it(bad):
    old = make_state()
    kept = state_lib.guard(old, stepped(old), {"loss": jnp.array(bad), "norm": jnp.ones(())})
    np.testing.assert_array_equal(kept.generator.params["w"], old.generator.params["w"])
    assert (int(kept.step), int(kept.nonfinite), int(kept.nonfinite_in_a_row)) == (1, 1, 1)
    recovered = state_lib.guard(kept, stepped(kept), {"loss": jnp.ones(())})
    assert (int(recovered.nonfinite), int(recovered.nonfinite_in_a_row)) == (1, 0)


def test_guard_freezes_after_twenty_in_a_row():
    state = make_state()
    for _ in range(state_lib.MAX_NONFINITE_IN_A_ROW):
        state = state_lib.guard(state, stepped(state), jnp.array(np.nan))
    frozen = state_lib.guard(state, stepped(state), jnp.ones(()))
    np.testing.assert_array_equal(frozen.generator.params["w"], state.generator.params["w"])
    assert int(frozen.nonfinite_in_a_row) > state_lib.MAX_NONFINITE_IN_A_ROW


def test_guard_keeps_every_part_of_a_classifier_s_state():
    old = make_classifier_state(use_ema=True)
    new = jax.tree.map(lambda x: x + 1, old)
    kept = state_lib.guard(old, new, jnp.array(np.nan))
    assert state_lib.digest((kept.network, kept.ema)) == state_lib.digest((old.network, old.ema))
    assert {k: float(v) for k, v in kept.counts.items()} == {
        "nonfinite": 1.0,
        "nonfinite_in_a_row": 1.0,
    }
    taken = state_lib.guard(old, new, jnp.ones(()))
    assert state_lib.digest((taken.network, taken.ema)) == state_lib.digest((new.network, new.ema))


@pytest.mark.parametrize("make", [make_state, make_classifier_state])
def test_no_buffer_stands_twice_in_a_state(make):
    # A donated state must not hold one twice.
    donated = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    assert int(donated(make(use_ema=True)).step) == 1


def test_the_leaves_of_a_gan_s_state_keep_their_order():
    # The digests of saved runs depend on it.
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(make_state())]
    firsts = list(dict.fromkeys(path.split(".")[1] for path in paths))
    assert firsts == ["step", "generator", "discriminator", "nonfinite", "nonfinite_in_a_row"]


def test_ema_follows_the_warm_up_and_covers_batch_statistics():
    average = {"params": jnp.zeros(()), "batch_stats": jnp.zeros(())}
    values = {"params": jnp.ones(()), "batch_stats": jnp.full((), 2.0)}
    after = state_lib.update_ema(average, values, jnp.array(1), decay=0.999)
    np.testing.assert_allclose(after["params"], 1 - 2 / 11, rtol=1e-6)
    np.testing.assert_allclose(after["batch_stats"], 2 * (1 - 2 / 11), rtol=1e-6)
    late = state_lib.update_ema(average, values, jnp.array(10**7), decay=0.9)
    np.testing.assert_allclose(late["params"], 0.1, rtol=1e-5)


def test_averaged_is_the_ema_where_it_is_on():
    assert make_state(use_ema=True).averaged["generator"]["params"]["w"].shape == (3,)
    raw = make_state().averaged["discriminator"]["params"]["w"]
    np.testing.assert_array_equal(raw, np.full(3, 2.0, np.float32))
    state = make_classifier_state(use_ema=True)
    ema = jax.tree.map(lambda x: x + 5.0, state.ema)
    averaged = state.replace(ema=ema).averaged
    np.testing.assert_array_equal(averaged["params"]["w"], np.full(3, 6.0, np.float32))
    np.testing.assert_array_equal(averaged["batch_stats"]["mean"], np.full(2, 5.0, np.float32))
    np.testing.assert_array_equal(make_classifier_state().averaged["params"]["w"], np.ones(3))


def test_digest_sees_every_bit_every_name_and_every_dtype():
    state = make_state()
    digest = state_lib.digest(state)
    assert digest == state_lib.digest(jax.device_get(state))
    one_bit = state.generator.params["w"].at[1].set(np.nextafter(np.float32(1), np.float32(2)))
    changed = state.replace(generator=state.generator.replace(params={"w": one_bit}))
    renamed = state.replace(generator=state.generator.replace(params={"v": jnp.ones(3)}))
    assert len({digest, state_lib.digest(changed), state_lib.digest(renamed)}) == 3
    assert state_lib.digest(jnp.zeros(2, jnp.int32)) != state_lib.digest(jnp.zeros(2))
