import os
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skin_jax import config as config_lib
from skin_jax import tasks
from skin_jax.base.errors import UserError
from skin_jax.data.classes import HAM10000
from skin_jax.models.layers import BatchNorm, ClassifierHead, ClassifierOutput, Conv
from skin_jax.tasks import augment, classifier, losses
from skin_jax.tasks.state import digest

RNG = jax.random.key(0)
BATCH = {
    "image": np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8),
    "label": np.array([0, 5, 5, 3], np.int32),
    "position": np.arange(4, dtype=np.uint32),
    "mask": np.ones(4, np.float32),
}
NO_AUGMENTATION = {"crop": 1.0, "flip": False, "rotate90": False, "rotation": 0.0}


class Tiny(nn.Module):
    """The interface of every classifier, in two layers."""

    num_classes: int
    dropout: float = 0.0
    dtype: Any = jnp.float32
    width_multiplier: float = 1.0

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> ClassifierOutput:
        x = Conv(8, 4, 2, 1, dtype=self.dtype, name="conv")(images)
        x = nn.relu(BatchNorm(dtype=self.dtype, name="norm")(x, train=train))
        return ClassifierHead(self.num_classes, self.dropout, name="head")(x, train=train)


@pytest.fixture(scope="module", autouse=True)
def _a_tiny_model():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(classifier.MODELS, "tiny", Tiny)
        yield


def make(**changes) -> classifier.Classifier:
    config = classifier.defaults()
    small = {"data.image_size": 32, "model.name": "tiny", "ema_decay": 0.0}
    small |= {"optimizer.warmup_steps": 0, "optimizer.learning_rate": 1e-2}
    small |= {f"augment.{key}": value for key, value in NO_AUGMENTATION.items()}
    config.update_from_flattened_dict(
        small | {key.replace("__", "."): value for key, value in changes.items()}
    )
    config_lib.validate(config)
    return tasks.build(config, HAM10000.names, np.array([1, 2, 3, 4, 5, 6, 7]), 100, 5.0)


def initial(task: classifier.Classifier):
    return jax.jit(task.init)(RNG)


def fake_load(variables, network, source, *, head=False):
    """Every variable but the head's as NumPy arrays of 0.5."""
    assert source == "weights.safetensors"
    assert not head

    def half(part):
        return jax.tree.map(lambda x: np.full(x.shape, 0.5, np.float32), part)

    return {
        collection: {n: part if n == "head" else half(part) for n, part in parts.items()}
        for collection, parts in variables.items()
    }


def leaves_by_path(tree):
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in found}


@pytest.fixture(scope="module")
def trained():
    """Weights and statistics that are not those of the start."""
    task = make()
    state, step = initial(task), jax.jit(task.train_step)
    for _ in range(3):
        state, _ = step(state, BATCH, RNG)
    return state


def test_steps_lower_the_loss_of_a_fixed_batch_and_count():
    task = make()
    step, state = jax.jit(task.train_step), initial(task)
    seen = []
    for _ in range(8):
        state, metrics = step(state, BATCH, RNG)
        seen.append(float(metrics["loss"]))
    assert seen[-1] < seen[0]
    assert (int(state.step), int(state.nonfinite)) == (8, 0)
    assert set(metrics) == {
        "loss",
        "train_accuracy",
        "grad_norm",
        "nonfinite",
        "nonfinite_in_a_row",
    }
    assert {v.dtype for v in metrics.values()} == {jnp.dtype("float32")}
    assert set(task.headline) <= set(metrics)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighting", ["none", "balanced"])
def test_the_loss_is_that_of_the_settings(trained, weighting, smoothing):
    task = make(loss__class_weights=weighting, loss__label_smoothing=smoothing)
    _, metrics = jax.jit(task.train_step)(trained, BATCH, RNG)
    output, _ = task.network.apply(
        trained.variables, augment.to_float(BATCH["image"]), train=True, mutable=["batch_stats"]
    )
    counts = np.array([1, 2, 3, 4, 5, 6, 7])
    weights = 28 / (7 * counts) if weighting == "balanced" else np.ones(7)
    expected = losses.classification(
        output.logits, BATCH["label"], jnp.asarray(weights, jnp.float32), smoothing
    )
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    accuracy = np.mean(np.argmax(output.logits, axis=1) == BATCH["label"])
    np.testing.assert_allclose(metrics["train_accuracy"], accuracy)


def test_an_adjusted_loss_adds_the_log_shares_of_the_training_stream(trained):
    counts = np.array([1, 2, 3, 4, 5, 6, 7])
    output, _ = make().network.apply(
        trained.variables, augment.to_float(BATCH["image"]), train=True, mutable=["batch_stats"]
    )

    def loss(**changes):
        task = make(loss__logit_adjustment=1.5, loss__label_smoothing=0.0, **changes)
        return float(jax.jit(task.train_step)(trained, BATCH, RNG)[1]["loss"])

    def expected(weights):
        adjusted = output.logits + 1.5 * np.log(weights / weights.sum())[None]
        log_q = jax.nn.log_softmax(adjusted, axis=-1)
        return -np.mean(log_q[np.arange(4), BATCH["label"]])

    assert loss() == pytest.approx(expected(counts), rel=1e-5)
    powered = loss(data__sampling="power", data__sampling_exponent=0.5)
    assert powered == pytest.approx(expected(np.sqrt(counts)), rel=1e-5)
    assert loss(data__sampling="balanced") == pytest.approx(expected(np.ones(7)), rel=1e-5)


def test_traits_are_of_a_map_half_way_through_the_network(trained):
    task = make()
    images = jnp.asarray(BATCH["image"])
    # Of the two maps of Tiny, the later one.
    variables = trained.averaged
    _, captured = task.network.apply(
        variables,
        augment.to_float(images),
        train=False,
        capture_intermediates=lambda module, _: module.name == "norm",
        mutable=["intermediates"],
    )
    (middle,) = captured["intermediates"]["norm"]["__call__"]
    expected = np.concatenate([middle.mean(axis=(1, 2)), middle.std(axis=(1, 2))], axis=1)
    np.testing.assert_allclose(task.traits(trained, images), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "channels"),
    [("efficientnet_lite0", 112), ("resnet50", 1024), ("cnn", 96), ("discriminator", 512)],
)
def test_every_kind_of_network_has_traits(name, channels):
    task = make(model__name=name)
    state = jax.eval_shape(task.init, RNG)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.uint8)
    assert jax.eval_shape(task.traits, state, images).shape == (2, 2 * channels)


def test_images_without_a_label_are_not_mixed(trained, monkeypatch):
    given = []

    def mix(images, *_):
        given.append(len(images))
        return images, jnp.ones(len(images))

    monkeypatch.setattr(augment, "mix", mix)
    changes = {"loss__self_training": 1.0, "loss__pseudo_label_from_epoch": 0}
    losses_of = [
        jax.jit(make(**changes, loss__mixup=mixup).with_unlabelled(4).train_step)(
            trained, BATCH, RNG
        )[1]
        for mixup in (0.0, 0.4)
    ]
    assert given == [2]  # half of the batch
    for name in ("loss", "self_training"):
        assert float(losses_of[0][name]) == pytest.approx(float(losses_of[1][name]), rel=1e-5)


def test_mixing_is_another_one_at_each_step_and_blends_the_labels_too(trained):
    step = jax.jit(make(loss__mixup=0.4, loss__cutmix=1.0).train_step)
    first, again = (step(trained, BATCH, RNG)[1]["loss"] for _ in range(2))
    later = step(trained.replace(step=trained.step + 1), BATCH, RNG)[1]["loss"]
    assert float(first) == float(again)
    assert float(first) != float(later)
    # Of images and labels that are all alike nothing can be mixed.
    alike = BATCH | {"image": BATCH["image"][[1] * 4], "label": BATCH["label"][[1] * 4]}
    mixed, plain = (
        jax.jit(task.train_step)(trained, alike, RNG)[1]["loss"]
        for task in (make(loss__mixup=0.4), make())
    )
    assert float(mixed) == pytest.approx(float(plain), rel=1e-5)


def test_images_grow_at_the_epochs_of_the_settings_and_are_judged_whole():
    growing = {"growth__sizes": (32, 48, 64), "growth__epochs": (1.0, 2.5)}
    task = make(data__image_size=64, **growing)  # 5 steps an epoch
    sizes = [task.train_size(step) for step in range(100)]
    assert sizes == [32] * 5 + [48] * 13 + [64] * 82
    state = jax.eval_shape(task.init, RNG)
    batch = BATCH | {"image": np.zeros((4, 64, 64, 3), np.uint8)}
    seen = []
    for size in (32, 64):
        step = task.step_on(task.mesh(1, 4), size)
        text = jax.make_jaxpr(step)(state, batch, RNG).pretty_print()
        seen.append([side for side in (16, 32) if f"f32[4,{side},{side},8]" in text])
    assert seen == [[16], [32]]  # after the network's first convolution
    assert jax.eval_shape(task.predict, state, batch["image"]).shape == (4, 7)
    assert make(data__image_size=64).train_size(0) is None


def test_a_dispatch_of_several_steps_has_one_size():
    growing = {"growth__sizes": (32, 64), "growth__epochs": (1.0,), "steps_per_dispatch": 4}
    assert make(data__image_size=64, **growing).growth == ((0, 32), (4, 64))


def test_stages_are_in_the_order_of_the_network():
    task = make(model__name="efficientnet_lite0", model__width_multiplier=0.25)
    names = classifier._submodules(task.network, 32)
    stages = list(dict.fromkeys(name.partition("_")[0] for name in names))
    assert stages == ["stem", *(f"stage{n}" for n in range(7)), "last", "head"]


def test_the_checkpoint_is_chosen_by_the_score_of_the_settings():
    assert make().score == ("val_macro_auc", True)
    assert make(best_by="log_loss").score == ("val_log_loss", False)


def test_augmentation_depends_on_the_position_and_not_on_the_batch():
    task = make(augment__flip=True, augment__crop=0.5, optimizer__learning_rate=1e-9)
    state = initial(task)
    step = jax.jit(task.train_step)

    def loss(rows, positions):
        images, labels = BATCH["image"][rows], BATCH["label"][rows]
        batch = {"image": images, "label": labels, "position": np.asarray(positions, np.uint32)}
        return float(step(state, batch, RNG)[1]["loss"])

    assert loss([0, 1], [7, 9]) == pytest.approx(loss([1, 0], [9, 7]), rel=1e-5)
    assert loss([0, 1], [7, 9]) != pytest.approx(loss([0, 1], [9, 7]), rel=1e-5)


def test_dropout_is_another_one_at_each_step_and_none_in_prediction(trained):
    task, plain = make(model__dropout=0.5), make()
    step = jax.jit(task.train_step)
    first, again = (step(trained, BATCH, RNG)[1]["loss"] for _ in range(2))
    later = step(trained.replace(step=trained.step + 1), BATCH, RNG)[1]["loss"]
    assert float(first) == float(again)
    assert float(first) != float(later)
    np.testing.assert_array_equal(
        task.predict(trained, BATCH["image"]), plain.predict(trained, BATCH["image"])
    )


def test_a_step_that_is_not_finite_leaves_the_whole_state():
    task = make(ema_decay=0.9)
    state = initial(task)
    params = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(np.nan), state.network.params)
    broken = state.replace(network=state.network.replace(params=params))
    new, metrics = jax.jit(task.train_step)(broken, BATCH, RNG)
    assert (int(new.step), int(new.nonfinite)) == (1, 1)
    assert float(metrics["nonfinite_in_a_row"]) == 1.0
    assert digest((new.network, new.ema)) == digest((broken.network, broken.ema))


def test_prediction_uses_running_statistics(trained):
    task = make()
    together = np.asarray(task.predict(trained, BATCH["image"]))
    assert together.shape == (4, 7)
    assert together.dtype == np.float32
    np.testing.assert_allclose(together.sum(axis=1), np.ones(4), rtol=1e-5)
    alone = np.concatenate([task.predict(trained, BATCH["image"][i : i + 1]) for i in range(4)])
    np.testing.assert_allclose(alone, together, atol=1e-6)
    stats = jax.tree.map(lambda x: x + 1.0, trained.network.batch_stats)
    moved = trained.replace(network=trained.network.replace(batch_stats=stats))
    assert np.abs(task.predict(moved, BATCH["image"]) - together).max() > 1e-4


def test_prediction_features_and_maps_use_the_average_where_it_is_on():
    task = make(ema_decay=0.9)
    state = initial(task)
    zeros = state.replace(ema=jax.tree.map(jnp.zeros_like, state.ema))
    np.testing.assert_allclose(task.predict(zeros, BATCH["image"]), np.full((4, 7), 1 / 7))
    np.testing.assert_array_equal(task.features(zeros, BATCH["image"]), np.zeros((4, 8)))
    np.testing.assert_array_equal(
        task.explain(zeros, BATCH["image"], BATCH["label"]), np.zeros((4, 16, 16))
    )
    new, _ = jax.jit(task.train_step)(state, BATCH, RNG)
    kernels = [
        s["params"]["head"]["logits"]["kernel"] for s in (state.ema, new.ema, new.network.variables)
    ]
    np.testing.assert_allclose(kernels[1], 2 / 11 * kernels[0] + 9 / 11 * kernels[2], rtol=1e-4)
    assert digest(new.ema["batch_stats"]) != digest(state.ema["batch_stats"])


def test_features_are_what_the_head_classifies(trained):
    task = make()
    features = np.asarray(task.features(trained, BATCH["image"]))
    assert features.shape == (4, 8)
    assert features.dtype == np.float32
    head = trained.network.params["head"]["logits"]
    logits = features @ head["kernel"] + head["bias"][None]
    np.testing.assert_allclose(
        jax.nn.softmax(logits, axis=-1), task.predict(trained, BATCH["image"]), atol=1e-6
    )


def test_the_map_is_that_of_the_pooled_features(trained):
    task = make()
    found = np.asarray(jax.jit(task.explain)(trained, BATCH["image"], BATCH["label"]))
    assert found.shape == (4, 16, 16)
    assert found.dtype == np.float32
    output = task.network.apply(trained.variables, augment.to_float(BATCH["image"]), train=False)
    # After global average pooling the gradient of a logit is its column of the kernel.
    weights = trained.network.params["head"]["logits"]["kernel"][:, BATCH["label"]]
    expected = np.maximum(np.einsum("bhwk,kb->bhw", output.features, weights), 0)
    assert (expected.max(axis=(1, 2)) > 0).all()
    expected /= expected.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("of_shapes", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_pretrained_fills_the_backbone_and_its_average_and_leaves_the_rest(
    monkeypatch, decay, of_shapes
):
    monkeypatch.setattr(classifier.pretrained, "load", fake_load)
    task = make(model__weights="weights.safetensors", ema_decay=decay)
    state = jax.eval_shape(task.init, RNG) if of_shapes else initial(task)
    started = task.pretrained(state)
    assert jax.tree.structure(started) == jax.tree.structure(state)
    before, after = leaves_by_path(state), leaves_by_path(started)
    filled = {path for path, leaf in after.items() if isinstance(leaf, np.ndarray)}
    backbone = {
        f"{place}['{part}']"
        for place in (".network.params", ".ema['params']")[: 1 + bool(decay)]
        for part in ("conv']['kernel", "norm']['scale", "norm']['bias")
    } | {
        f"{place}['norm']['{part}']"
        for place in (".network.batch_stats", ".ema['batch_stats']")[: 1 + bool(decay)]
        for part in ("mean", "var")
    }
    assert filled == backbone
    assert all(after[path] is before[path] for path in before.keys() - filled)
    assert all(np.all(after[path] == 0.5) for path in filled)
    assert all(after[path].shape == before[path].shape for path in filled)


def test_training_goes_on_from_pretrained_weights_with_a_donated_state(monkeypatch):
    monkeypatch.setattr(classifier.pretrained, "load", fake_load)
    task = make(model__weights="weights.safetensors", ema_decay=0.9)
    started = task.pretrained(initial(task))
    kept, _ = jax.jit(task.train_step)(started, BATCH, RNG)
    donated, _ = jax.jit(task.train_step, donate_argnums=0)(jax.device_put(started), BATCH, RNG)
    assert digest(donated) == digest(kept)
    assert np.all(started.network.params["norm"]["scale"] == 0.5)  # the file's stay as they are


def test_without_weights_the_state_stays_as_it_is():
    task = make()
    state = initial(task)
    assert task.pretrained(state) is state


def test_weights_that_are_not_there_are_one_sentence(tmp_path):
    task = make(model__name="efficientnet_lite0", model__weights=str(tmp_path / "x.safetensors"))
    with pytest.raises(UserError, match=r"x\.safetensors.*no such file") as error:
        task.pretrained(jax.eval_shape(task.init, RNG))
    assert len(str(error.value).splitlines()) == 1


def test_the_real_weights_fill_every_shape_but_the_head_s():
    folder = os.environ.get("SKIN_JAX_TEST_WEIGHTS")
    if not folder:
        pytest.skip("SKIN_JAX_TEST_WEIGHTS is not set")
    weights = Path(folder) / "tf_efficientnet_lite0.in1k.safetensors"
    task = make(model__name="efficientnet_lite0", model__weights=str(weights))
    network = task.pretrained(jax.eval_shape(task.init, RNG)).network
    for path, leaf in leaves_by_path(network.variables).items():
        assert isinstance(leaf, np.ndarray) == ("['head']" not in path), path


def test_bf16_keeps_parameters_losses_and_probabilities_in_float32(trained):
    task = make(precision="bf16")
    new, metrics = jax.jit(task.train_step)(trained, BATCH, RNG)
    assert int(new.nonfinite) == 0
    assert {x.dtype for x in jax.tree.leaves(new.network.variables)} == {jnp.dtype("float32")}
    assert {v.dtype for v in metrics.values()} == {jnp.dtype("float32")}
    exact = make().predict(trained, BATCH["image"])
    assert task.predict(trained, BATCH["image"]).dtype == jnp.float32
    np.testing.assert_allclose(task.predict(trained, BATCH["image"]), exact, atol=0.02)
    assert task.features(trained, BATCH["image"]).dtype == jnp.float32


@pytest.mark.parametrize("name", ["resnet50", "densenet121", "efficientnet_lite4", "cnn"])
def test_every_model_fits_the_task_in_its_smallest_form(name):
    # Shapes alone: compiling them belongs to the tests of the networks.
    task = make(model__name=name, model__width_multiplier=0.25, model__dropout=0.2)
    state = jax.eval_shape(task.init, RNG)
    new, metrics = jax.eval_shape(task.train_step, state, BATCH, RNG)
    assert leaves_by_path(new).keys() == leaves_by_path(state).keys()
    assert metrics["loss"].shape == ()
    assert state.network.params["head"]["logits"]["kernel"].shape[1] == 7


def test_only_the_head_starts_at_the_full_rate():
    task = make(optimizer__backbone_multiplier=0.25, optimizer__weight_decay=0.0)
    state = initial(task)
    new, _ = jax.jit(task.train_step)(state, BATCH, RNG)
    far = jax.tree.map(
        lambda a, b: float(jnp.max(jnp.abs(a - b))), new.network.params, state.network.params
    )
    # Adam's first steps are as long as the rate, whatever the gradient.
    np.testing.assert_allclose(far["head"]["logits"]["bias"], 1e-2, rtol=1e-3)
    np.testing.assert_allclose(far["conv"]["kernel"], 0.25e-2, rtol=1e-2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__image_size": 16}, r"config.data.image_size is 16; it must be at least 32"),
        ({"model__name": "vgg"}, r"config.model.name is 'vgg'; it can be 'resnet50'"),
        ({"model__width_multiplier": 0.0}, r"config.model.width_multiplier is 0.0"),
        ({"model__dropout": 1.0}, r"config.model.dropout is 1.0; it must be below 1"),
        ({"loss__label_smoothing": -0.1}, r"config.loss.label_smoothing is -0.1"),
        ({"loss__label_smoothing": 1.0}, r"config.loss.label_smoothing is 1.0"),
        ({"loss__class_weights": "w"}, r"config.loss.class_weights"),
        ({"optimizer__weight_decay": -1.0}, r"config.optimizer.weight_decay is -1.0"),
        ({"ema_decay": 1.5}, r"config.ema_decay is 1.5; it must be below 1"),
        ({"precision": "fp8"}, r"config.precision is 'fp8'"),
        ({"growth__sizes": (16, 32)}, r"config.growth.sizes is \[16, 32\]; it must be at least 32"),
        ({"growth__sizes": (32, 32)}, r"config.growth.epochs has 0 numbers for the 2 of"),
        (
            {"growth__sizes": (40,), "data__image_size": 96},
            r"config.growth.sizes has 40; with config.data.image_size=96 it takes 48 to 96",
        ),
        ({"growth__sizes": (64,)}, r"it takes 16 to 32"),
        ({"augment__crop": 0.0}, r"config.augment.crop is 0.0; it must be above 0"),
    ],
)
def test_wrong_settings_name_their_key(changes, message):
    with pytest.raises(UserError, match=message):
        make(**changes)
