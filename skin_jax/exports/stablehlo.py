"""StableHLO: one file for CPUs, CUDA and TPUs that JAX of another version opens, without our code.

exported = jax.export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
probabilities = exported.call(images)
json.loads(zipfile.ZipFile("model.stablehlo").read("metadata.json"))["classes"]
"""

import jax
from jax import export

from skin_jax.exports.functions import Function

PLATFORMS = ("cpu", "cuda", "tpu")


def serialized(function: Function) -> bytes:
    """The function for any number of examples B, on any of the platforms."""
    exported = export.export(jax.jit(function.call), platforms=PLATFORMS)
    return bytes(exported(*function.inputs.values()).serialize())
