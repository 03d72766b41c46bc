import os
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from skin_jax.base.errors import UserError
from skin_jax.models import pretrained
from skin_jax.models.densenet import DenseNet
from skin_jax.models.efficientnet_lite import LITE, EfficientNetLite, lite
from skin_jax.models.resnet import ResNet

NAMES = ("resnet", "densenet", "efficientnet_lite")


def shapes_of(network):
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    return jax.eval_shape(
        lambda key, x: network.init(key, x, train=True), jax.random.key(0), images
    )


@pytest.fixture(scope="module")
def tiny(parity, golden):
    """(network, shapes of its variables, timm's tensors) of the tiny network of a name."""
    made = {}

    def make(name):
        if name not in made:
            network = parity.jax_network(name, True)
            weights = {
                k.removeprefix("weights/"): v.astype(np.float32)
                for k, v in golden(name).items()
                if k.startswith("weights/")
            }
            made[name] = network, shapes_of(network), weights
        network, shapes, weights = made[name]
        return network, shapes, {name: tensor.copy() for name, tensor in weights.items()}

    return make


def saved(tensors, path):
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path)
    return str(path)


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_is_used_once_and_the_head_stays(tiny, tmp_path, name):
    network, shapes, weights = tiny(name)
    file = saved(weights, tmp_path / "w.safetensors")
    loaded = pretrained.load(shapes, network, file)
    assert jax.tree.map(lambda leaf: leaf.shape, loaded) == jax.tree.map(
        lambda leaf: leaf.shape, shapes
    )
    assert all(
        ours is given
        for ours, given in zip(
            jax.tree.leaves(loaded["params"]["head"]),
            jax.tree.leaves(shapes["params"]["head"]),
            strict=True,
        )
    )
    loaded = pretrained.load(shapes, network, file, head=True)
    leaves = jax.tree.leaves(loaded)
    assert all(isinstance(leaf, np.ndarray) and leaf.dtype == np.float32 for leaf in leaves)
    sums = sorted(float(np.sum(leaf, dtype=np.float64)) for leaf in leaves)
    expected = sorted(float(np.sum(tensor, dtype=np.float64)) for tensor in weights.values())
    np.testing.assert_allclose(sums, expected, rtol=1e-9)


@pytest.mark.parametrize("make", [ResNet, DenseNet, EfficientNetLite])
def test_the_tables_name_every_variable_of_the_full_networks_once(make):
    network = make(7)
    layers = list(pretrained._TABLES[make](network))
    paths = [
        (collection, *layer.module, variable)
        for layer in layers
        for collection, variable, _ in pretrained._PARTS[layer.kind]
    ]
    leaves = jax.tree.leaves_with_path(shapes_of(network))
    assert sorted(paths) == sorted(tuple(key.key for key in path) for path, _ in leaves)
    names = [name for layer in layers for name in layer.names]
    assert len(names) == len(set(names))


def test_timm_names_of_the_full_networks():
    def names(network):
        return {n for layer in pretrained._TABLES[type(network)](network) for n in layer.names}

    assert names(ResNet(7)) >= {
        "conv1",
        "bn1",
        "layer1.0.downsample.1",
        "layer2.3.conv2",
        "layer3.5.bn3",
        "layer4.2.conv1",
        "fc",
    }
    assert names(DenseNet(7)) >= {
        "features.conv0",
        "features.denseblock3.denselayer24.norm1",
        "features.denseblock3.denselayer24.norm.1",
        "features.transition3.conv",
        "features.denseblock4.denselayer16.conv2",
        "features.norm5",
        "classifier",
    }


def test_a_head_of_other_classes_is_replaced_or_refused(tiny, tmp_path):
    network, _, weights = tiny("resnet")
    shapes = shapes_of(network.clone(num_classes=3))
    file = saved(weights, tmp_path / "w.safetensors")
    assert pretrained.load(shapes, network, file)["params"]["head"] == shapes["params"]["head"]
    with pytest.raises(
        UserError, match=r"fc.weight is \[10, 24\], but the network takes \[3, 24\]"
    ):
        pretrained.load(shapes, network, file, head=True)
    without = {k: v for k, v in weights.items() if not k.startswith("fc.")}
    pretrained.load(shapes, network, saved(without, tmp_path / "w2.safetensors"))


def test_the_counters_of_batches_are_passed_over(tiny, tmp_path):
    network, shapes, weights = tiny("resnet")
    weights["bn1.num_batches_tracked"] = np.asarray(3)
    pretrained.load(shapes, network, saved(weights, tmp_path / "w.safetensors"))


def test_every_tensor_that_does_not_fit_is_listed(tiny, tmp_path):
    network, shapes, weights = tiny("resnet")
    del weights["bn1.running_mean"], weights["layer2.1.conv3.weight"]
    weights["layer1.0.conv2.weight"] = weights["layer1.0.conv2.weight"][:2]
    weights["layer1.0.bn1.bias"][1] = np.nan
    weights["layer1.0.bn2.running_var"][0] = np.inf
    weights["layer1.0.bn3.weight"] = np.ones(12, np.int32)
    weights["layer9.conv.weight"] = np.ones(1, np.float32)
    with pytest.raises(UserError) as caught:
        pretrained.load(shapes, network, saved(weights, tmp_path / "w.safetensors"))
    text = str(caught.value)
    for part in (
        "w.safetensors does not fit ResNet",
        "2 missing, 4 misshapen or not finite, 1 left over",
        "bn1.running_mean is missing (it belongs to batch_stats/stem_norm/mean)",
        "layer2.1.conv3.weight is missing",
        "layer1.0.conv2.weight is [2, 3, 3, 3], but the network takes [3, 3, 3, 3]",
        "layer1.0.bn1.bias holds NaN or infinite values",
        "layer1.0.bn2.running_var holds NaN",
        "layer1.0.bn3.weight is int32, not floating point",
        "layer9.conv.weight is left over",
    ):
        assert part in text


def test_weights_of_another_network_are_refused(tiny, tmp_path):
    _, _, weights = tiny("resnet")
    network, shapes, _ = tiny("densenet")
    with pytest.raises(UserError, match=r"(?s)does not fit DenseNet.*more"):
        pretrained.load(shapes, network, saved(weights, tmp_path / "w.safetensors"))


def test_the_names_of_torchvisions_densenet_files(tiny, tmp_path):
    network, shapes, weights = tiny("densenet")
    for kind in ("norm1", "norm2", "conv1", "conv2"):
        dotted = f".{kind[:-1]}.{kind[-1]}."
        weights = {
            k.replace(f".{kind}.", dotted) if "denselayer" in k else k: v
            for k, v in weights.items()
        }
    assert "features.denseblock1.denselayer1.norm.1.weight" in weights
    loaded = pretrained.load(shapes, network, saved(weights, tmp_path / "w.safetensors"))
    plain = pretrained.load(
        shapes, network, saved(tiny("densenet")[2], tmp_path / "plain.safetensors")
    )
    for a, b in zip(*(jax.tree.leaves(v["batch_stats"]) for v in (loaded, plain)), strict=True):
        np.testing.assert_array_equal(a, b)
    name = "features.denseblock1.denselayer1.norm"
    weights[f"{name}1.bias"] = weights[f"{name}.1.bias"]
    with pytest.raises(UserError, match=r"norm\.1\.bias is left over"):
        pretrained.load(shapes, network, saved(weights, tmp_path / "w.safetensors"))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floating_point_files_become_float32(tiny, tmp_path, dtype):
    network, shapes, weights = tiny("resnet")
    file = saved({k: v.astype(dtype) for k, v in weights.items()}, tmp_path / "w.safetensors")
    kernel = pretrained.load(shapes, network, file)["params"]["stem_conv"]["kernel"]
    assert kernel.dtype == np.float32
    expected = weights["conv1.weight"].astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(kernel, expected.transpose(2, 3, 1, 0))


def test_files_that_are_no_safetensors_get_one_sentence(tiny, tmp_path):
    network, shapes, weights = tiny("resnet")

    def refused(content, match, name="w.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=match) as caught:
            pretrained.load(shapes, network, str(tmp_path / name))
        assert "\n" not in str(caught.value)
        assert "--config.model.weights" in str(caught.value)

    whole = Path(saved(weights, tmp_path / "whole.safetensors")).read_bytes()
    for content in (b"", b"no weights at all", whole[:100], whole[:-1]):
        refused(content, "is not a whole safetensors file")
    refused(b"PK\x03\x04 a zip archive", "is a PyTorch pickle", "w.pth")
    refused(b"\x80\x02}q\x00.", "is a PyTorch pickle", "pytorch_model.bin")
    for path in (tmp_path / "absent.safetensors", tmp_path):
        with pytest.raises(UserError, match=r"no such file; --config\.model\.weights"):
            pretrained.load(shapes, network, str(path))


def hub(monkeypatch, download):
    module = types.SimpleNamespace(hf_hub_download=download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


def test_the_hub_is_asked_for_the_repository_and_revision(tiny, tmp_path, monkeypatch):
    network, shapes, weights = tiny("resnet")
    file, asked = saved(weights, tmp_path / "w.safetensors"), []

    def download(repository, name, revision=None):
        asked.append((repository, name, revision))
        return file

    hub(monkeypatch, download)
    for source in ("hf:timm/resnet50.a1_in1k", "hf:timm/resnet50.a1_in1k@v1"):
        loaded = pretrained.load(shapes, network, source)
        assert isinstance(loaded["params"]["stem_conv"]["kernel"], np.ndarray)
    assert asked == [
        ("timm/resnet50.a1_in1k", "model.safetensors", None),
        ("timm/resnet50.a1_in1k", "model.safetensors", "v1"),
    ]


def test_without_the_hub_the_file_and_its_page_are_named(tiny, monkeypatch):
    network, shapes, _ = tiny("resnet")

    def refused(source, *parts):
        with pytest.raises(UserError) as caught:
            pretrained.load(shapes, network, source)
        text = str(caught.value)
        assert "\n" not in text
        for part in (*parts, "--config.model.weights"):
            assert part in text

    def offline(repository, name, revision=None):
        raise ConnectionError("no route\nto host")

    page = "https://huggingface.co/timm/resnet50.a1_in1k/resolve/{}/model.safetensors"
    hub(monkeypatch, offline)
    refused("hf:timm/resnet50.a1_in1k", "(no route)", page.format("main"))
    refused("hf:timm/resnet50.a1_in1k@v1", page.format("v1"))
    for wrong in ("hf:resnet50", "hf:", "hf:a/b/c", "hf:a/b@", "hf:a b/c"):
        refused(wrong, "hf:OWNER/NAME")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused("hf:timm/resnet50.a1_in1k", "pip install 'skin_jax[hub]'", page.format("main"))


def test_a_file_says_which_efficientnet_lite_it_is_of(tmp_path):
    for n in range(len(LITE)):
        network = lite(n, 1000)
        shapes = shapes_of(network)
        tensors = {}
        for layer in pretrained._TABLES[EfficientNetLite](network):
            for collection, variable, part in pretrained._PARTS[layer.kind]:
                leaf = shapes[collection]
                for key in (*layer.module, variable):
                    leaf = leaf[key]
                axes = pretrained._AXES[leaf.ndim]
                shape = [leaf.shape[axes.index(axis)] for axis in range(leaf.ndim)]
                tensors[f"{layer.names[0]}.{part}"] = np.zeros(shape, np.float16)
        file = saved(tensors, tmp_path / "w.safetensors")
        found, variables = pretrained.efficientnet_lite(file, "--weights")
        assert (found, pretrained.title(found)) == (lite(n, 1), f"EfficientNet-Lite{n}")
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
        del tensors["blocks.3.1.bn2.bias"]
        file = saved(tensors, tmp_path / "w.safetensors")
        with pytest.raises(UserError, match=rf"does not fit EfficientNet-Lite{n}: .*1 missing"):
            pretrained.efficientnet_lite(file, "--weights")


@pytest.mark.parametrize("n", [0, 2])
def test_the_real_weights_give_the_golden_values(n):
    folder = os.environ.get("SKIN_JAX_TEST_WEIGHTS")
    if not folder:
        pytest.skip("SKIN_JAX_TEST_WEIGHTS is not set")
    file = str(Path(folder) / f"tf_efficientnet_lite{n}.in1k.safetensors")
    network = lite(n, 1000)
    variables = pretrained.load(shapes_of(network), network, file, head=True)
    judge, of_judge = pretrained.efficientnet_lite(file, "--weights")
    assert judge.clone(num_classes=1000) == network
    with np.load(Path(folder) / f"tf_efficientnet_lite{n}.golden.npz") as golden:
        images = golden["images_u8"] / np.float32(127.5) - 1.0
        out = jax.jit(lambda v, x: network.apply(v, x, train=False))(variables, images)
        np.testing.assert_allclose(out.logits, golden["logits"], atol=1e-4)
        np.testing.assert_allclose(out.pooled, golden["pooled_features"], atol=1e-4)
        pooled = jax.jit(lambda v, x: judge.apply(v, x, train=False).pooled)(of_judge, images)
        np.testing.assert_allclose(pooled, golden["pooled_features"], atol=1e-4)
    best = {0: [285, 282, 281, 287, 728], 2: [285, 282, 281, 287, 622]}[n]
    assert np.argsort(-out.logits[0])[:5].tolist() == best
