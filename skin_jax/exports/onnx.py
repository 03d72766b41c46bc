"""ONNX, for ONNX Runtime and whatever else opens it; needs the package jax2onnx."""

import json

from skin_jax.base.errors import UserError
from skin_jax.exports.functions import Function
from skin_jax.models import ops


def serialized(function: Function) -> bytes:
    """The function for any number of examples B; its metadata are `metadata_props`, JSON each.

    Raises:
      UserError: jax2onnx is not installed.
    """
    try:
        from jax2onnx import to_onnx
    except ImportError as error:
        raise UserError(
            f"ONNX needs jax2onnx, which cannot be imported ({error}): pip install "
            "'skin_jax[export]', then pip install --no-deps jax2onnx"
        ) from None
    with ops.plain_forms():
        model = to_onnx(
            function.call,
            list(function.inputs.values()),
            model_name="skin_jax",
            input_names=list(function.inputs),
            output_names=[function.output],
        )
    del model.graph.value_info[:]  # shapes of activations, partly wrong: runtimes infer their own
    for key, value in function.metadata.items():
        model.metadata_props.add(key=key, value=json.dumps(value))
    return bytes(model.SerializeToString())
