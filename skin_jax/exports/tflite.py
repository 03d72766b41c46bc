"""TFLite, for telephones and small computers; one example at a time. Needs TensorFlow."""

import warnings
from typing import Any

import jax
import numpy as np

from skin_jax.base.errors import UserError
from skin_jax.exports.functions import Function
from skin_jax.models import ops

PRECISIONS = ("float32", "float16", "int8")


def serialized(function: Function, precision: str, images: np.ndarray | None) -> bytes:
    """The function for B = 1; what int8 changes goes into its metadata, as "int8".

    Args:
      function: with the classifier for "int8".
      precision: of weights; with "int8" (Jacob et al., "Quantization and Training of Neural
        Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018) also of activations.
      images: uint8 [N, S, S, 3], for "int8": they tell the ranges of activations.

    Raises:
      UserError: TensorFlow or jax2tf is missing, or images are.
    """
    calibrating = images if precision == "int8" and "images" in function.inputs else None
    if precision == "int8" and calibrating is None:
        raise UserError(
            "int8 is for classifiers and needs images, some hundred like those to be predicted, "
            "for the ranges of activations; give their folder with --images"
        )
    try:
        import tensorflow as tf
        from jax.experimental import jax2tf
    except ImportError as error:
        raise UserError(f"TFLite needs TensorFlow ({error}): pip install 'skin_jax[tf]'") from None
    signature = [
        tf.TensorSpec(
            [axis if isinstance(axis, int) else 1 for axis in spec.shape], spec.dtype, name
        )
        for name, spec in function.inputs.items()
    ]
    converted = tf.function(
        jax2tf.convert(function.call, native_serialization_platforms=("cpu",)),
        input_signature=signature,
        autograph=False,
    )
    with ops.plain_forms():
        concrete = converted.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], converted)
    if precision != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if calibrating is not None:
        converter.representative_dataset = lambda: ([image[None]] for image in calibrating)
    # It warns of its own successor, and of statistics that it then takes from the images.
    with warnings.catch_warnings(category=UserWarning, action="ignore"):
        content = bytes(converter.convert())
        if calibrating is not None:
            interpreter = tf.lite.Interpreter(model_content=content)
            function.metadata[precision] = _changes(function, interpreter, calibrating)
    return content


def _changes(function: Function, interpreter: Any, images: np.ndarray) -> str:
    interpreter.allocate_tensors()
    (given,), (returned,) = interpreter.get_input_details(), interpreter.get_output_details()
    found = []
    for image in images:
        interpreter.set_tensor(given["index"], image[None])
        interpreter.invoke()
        found.append(interpreter.get_tensor(returned["index"])[0])
    exact = jax.jit(function.call)
    expected = np.concatenate([np.asarray(exact(image[None])) for image in images])
    quantised = np.stack(found)
    same = int((quantised.argmax(axis=1) == expected.argmax(axis=1)).sum())
    largest = float(np.abs(quantised - expected).max())
    return (
        f"{same} of the {len(images)} images keep their class; probabilities change by "
        f"{largest:.3f} at most"
    )
