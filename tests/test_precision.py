"""bf16: activations alone have it; parameters, statistics, losses and what is kept are float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from skin_jax import tasks
from skin_jax.data.classes import HAM10000
from skin_jax.models.cnn import Cnn
from skin_jax.models.densenet import DenseNet
from skin_jax.models.efficientnet_lite import LITE, EfficientNetLite
from skin_jax.models.resnet import ResNet
from skin_jax.tasks import classifier
from skin_jax.tasks.declared import dcgan, sgan
from skin_jax.tasks.state import digest

# As few layers as have one of each kind.
CLASSIFIERS = {
    "resnet": functools.partial(ResNet, stage_sizes=(1, 1)),
    "efficientnet": functools.partial(EfficientNetLite, stages=LITE[0][:2], last_features=32),
    "densenet": functools.partial(DenseNet, block_sizes=(1, 2)),
    "cnn": functools.partial(Cnn, widths=(32, 64)),
}
NETWORKS = ("sgan", "dcgan", *CLASSIFIERS)
AS_COMPILED = ("sgan", "dcgan", "efficientnet")  # strided, transposed, depthwise, 1x1
MARKS = {name: [pytest.mark.as_compiled] for name in AS_COMPILED}
MARKS |= {name: [pytest.mark.soak] for name in ("resnet", "densenet")}  # no layers of their own
ROWS, SIZE = 16, 32
WIDTH = 32
"""Of the GANs: with 8 the generator's cosine falls to 0.98, for D's first step of Adam is about the
sign of its gradient, which rounding turns where there is next to none."""


@pytest.fixture(scope="module", autouse=True)
def _small_networks():
    with pytest.MonkeyPatch.context() as patch:
        for name, network in CLASSIFIERS.items():
            patch.setitem(classifier.MODELS, name, network)
        yield


def build(name, precision):
    if name in CLASSIFIERS:
        config = classifier.defaults()
        config.model.name, config.model.width_multiplier = name, 0.5
        config.optimizer.warmup_steps = 0
    else:
        config = {"sgan": sgan, "dcgan": dcgan}[name].defaults()
        config.model.width, config.model.noise_size = WIDTH, 16
    config.data.image_size, config.batch_size = SIZE, ROWS
    config.precision, config.ema_decay = precision, 0.9
    if name == "dcgan":
        config.classes = ("df",)
    return tasks.build(config, HAM10000.names, np.full(7, 10), 100, 5.0)


def batch():
    rng = np.random.default_rng(0)
    # Of blobs, not noise: gradients of neighbouring pixels add up, as those of images do.
    coarse = rng.integers(0, 256, (ROWS, 4, 4, 3), dtype=np.uint8)
    return {
        "image": coarse.repeat(SIZE // 4, axis=1).repeat(SIZE // 4, axis=2),
        "label": np.resize(np.array([3, 5], np.int32), ROWS),
        "position": np.arange(ROWS, dtype=np.uint32),
        "mask": np.ones(ROWS, np.float32),
    }


def first_step(name, precision):
    """The digest of the state before it, and the state after it."""
    task = build(name, precision)
    state = jax.jit(task.init)(jax.random.key(0))
    return digest(state), jax.jit(task.train_step)(state, batch(), jax.random.key(0))[0]


def gradients(state):
    """Those of the first step, by network; Adam's first moment is a multiple of them."""
    if isinstance(state, classifier.ClassifierState):
        return {"network": optax.tree.get(state.network.opt_state, "mu")}
    gans = getattr(state, "gans", state)
    return {
        name: optax.tree.get(getattr(gans, name).opt_state, "mu")
        for name in ("generator", "discriminator")
    }


def equations(jaxpr):
    """All of them; of what depends on the platform, those of the default."""
    for equation in jaxpr.eqns:
        yield equation
        values = list(equation.params.values())
        if equation.params.get("branches_platforms") is not None:
            values = [equation.params["branches"][-1]]
        inner = jax.tree.leaves(values, is_leaf=lambda leaf: hasattr(leaf, "jaxpr"))
        for leaf in inner:
            if hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr"):
                yield from equations(getattr(leaf, "jaxpr", leaf))


@pytest.mark.parametrize("name", [pytest.param(n, marks=MARKS.get(n, [])) for n in NETWORKS])
def test_the_first_gradient_points_where_that_of_float32_does(name):
    (before, low), (same, full) = (first_step(name, p) for p in ("bf16", "float32"))
    assert before == same  # a seed has its weights, whatever the precision
    for network, expected in gradients(full).items():
        ours, theirs = (
            np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
            for tree in (gradients(low)[network], expected)
        )
        cosine = ours @ theirs / (np.linalg.norm(ours) * np.linalg.norm(theirs))
        assert cosine >= 0.99, network


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_kept_and_logged_is_float32(name):
    task = build(name, "bf16")
    state = jax.eval_shape(task.init, jax.random.key(0))
    after = jax.eval_shape(task.train_step, state, batch(), jax.random.key(0))
    kept = {
        leaf.dtype for leaf in jax.tree.leaves(after) if jnp.issubdtype(leaf.dtype, jnp.inexact)
    }
    assert kept == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_features_alone_leave_a_classifier_in_bf16(name):
    network = build(name, "bf16").network
    images = jnp.zeros((ROWS, SIZE, SIZE, 3))
    key = jax.random.key(0)
    output, _ = jax.eval_shape(lambda: network.init_with_output(key, images, train=False))
    assert output.features.dtype == jnp.bfloat16
    assert output.logits.dtype == output.pooled.dtype == jnp.float32


@pytest.mark.parametrize("name", NETWORKS)
def test_all_layers_but_the_last_compute_in_bf16(name):
    task = build(name, "bf16")
    state = jax.eval_shape(task.init, jax.random.key(0))
    jaxpr = jax.make_jaxpr(task.train_step)(state, batch(), jax.random.key(0)).jaxpr
    products = [
        e for e in equations(jaxpr) if e.primitive.name in ("conv_general_dilated", "dot_general")
    ]
    low = [e for e in products if e.invars[0].aval.dtype == jnp.bfloat16]
    last = [e for e in products if e.invars[0].aval.dtype == jnp.float32]
    assert len(low) + len(last) == len(products)
    assert len(low) > len(last) > 0
    logits = {"sgan": 8, "dcgan": 1}.get(name, 7)
    for equation in last:
        assert equation.primitive.name == "dot_general"
        shapes = [v.aval.shape for v in (*equation.invars, *equation.outvars)]
        assert sum(logits in shape for shape in shapes) >= 2, shapes
