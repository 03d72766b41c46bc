"""A classifier's exports next to JAX: how well they agree on real images, how large, how fast.

python -m benchmarks.exports --workdir=RUN --images=FOLDER [--count=200] [--out=FOLDER]

The images are the first of the folder by name, resized as `predict` does it. A format whose package
is not installed is left out: onnxruntime with jax2onnx, TensorFlow (TFLite), timm with PyTorch.
Images a second are those of the better of two passes over all images, in batches of 32 (TFLite:
one at a time, which is how phones use it).
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import skin_jax
from benchmarks.tables import table
from skin_jax.base.errors import UserError
from skin_jax.data import images as images_lib

_BATCH = 32

TIMM = {
    "EfficientNet-Lite0": "tf_efficientnet_lite0",
    "EfficientNet-Lite2": "tf_efficientnet_lite2",
    "ResNet": "resnet50",
    "DenseNet": "densenet121",
}

Predict = Callable[[np.ndarray], np.ndarray]


def onnx(file: Path) -> Predict:
    """A function of uint8 images [B, S, S, 3] in ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file.read_bytes())
    return lambda images: session.run(None, {session.get_inputs()[0].name: images})[0]


def stablehlo(file: Path) -> Predict:
    """The same, compiled by JAX from the file alone."""
    call = jax.jit(jax.export.deserialize(bytearray(file.read_bytes())).call)
    return lambda images: np.asarray(call(images))


def tflite(file: Path) -> Predict:
    """The same in TensorFlow's interpreter, image by image."""
    import os

    import tensorflow

    interpreter = tensorflow.lite.Interpreter(
        model_content=file.read_bytes(), num_threads=os.cpu_count()
    )
    interpreter.allocate_tensors()
    given, found = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

    def one(image: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(given["index"], image[None])
        interpreter.invoke()
        return interpreter.get_tensor(found["index"])[0].copy()

    return lambda images: np.stack([one(image) for image in images])


def timm(file: Path) -> Predict:
    """The same in PyTorch: timm's network with the weights and the metadata of the file."""
    import json

    import timm as library
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(file, "pt") as opened:
        metadata = {key: json.loads(value) for key, value in opened.metadata().items()}
    name = TIMM[metadata["network"]]
    network = library.create_model(name, num_classes=len(metadata["classes"])).eval()
    network.load_state_dict(load_file(file))
    mean, std = (torch.tensor(metadata[name]).view(3, 1, 1) for name in ("mean", "std"))

    def predict(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
            return network((pixels - mean) / std).softmax(1).numpy()

    return predict


FORMATS: dict[str, tuple[str, str, Callable[[Path], Predict]]] = {
    "ONNX": ("model.onnx", "float32", onnx),
    "StableHLO": ("model.stablehlo", "float32", stablehlo),
    "timm (PyTorch)": ("model.safetensors", "float32", timm),
    **{f"TFLite, {p}": (f"{p}.tflite", p, tflite) for p in ("float32", "float16", "int8")},
}
"""File, precision, and what opens it."""


def timed(predict: Predict, images: np.ndarray) -> tuple[np.ndarray, float]:
    """What it finds, and images a second."""
    batches = [images[first : first + _BATCH] for first in range(0, len(images), _BATCH)]
    for size in {len(batch) for batch in batches}:
        predict(images[:size])  # compiles
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        found = [predict(batch) for batch in batches]
        seconds.append(time.perf_counter() - start)
    return np.concatenate(found), len(images) / min(seconds)


def rows(workdir: Path, files: Sequence[Path], folder: Path) -> Iterator[dict[str, Any]]:
    """A row for JAX, and one for each format that can be tried."""
    run = skin_jax.load(workdir)
    images = np.stack([images_lib.decode(file, run.image_size) for file in files])
    expected, rate = timed(lambda batch: run.predict(batch, batch_size=_BATCH), images)
    yield {"format": "JAX", "images_per_second": rate}

    def row(name: str, file: Path, predict: Predict) -> dict[str, Any]:
        found, rate = timed(predict, images)
        return {
            "format": name,
            "megabytes": file.stat().st_size / 1e6,
            "images_per_second": rate,
            "largest_difference": float(abs(found - expected).max()),
            "same_class": float((found.argmax(1) == expected.argmax(1)).mean()),
        }

    for name, (file_name, precision, opened) in FORMATS.items():
        file = folder / file_name
        try:
            run.export(file, precision=precision, images=images[:100])
            yield row(name, file, opened(file))
        except (ImportError, UserError) as error:
            print(f"{name} is left out: {error}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="of a classifier, or a zoo's")
    parser.add_argument("--images", type=Path, required=True, help="a folder of JPEG files")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--out", type=Path, help="keeps the exports there")
    chosen = parser.parse_args(arguments)
    files = sorted(chosen.images.rglob("*.jpg"))[: chosen.count]
    with tempfile.TemporaryDirectory() as folder:
        print(table(list(rows(chosen.workdir, files, chosen.out or Path(folder)))))


if __name__ == "__main__":
    main()
