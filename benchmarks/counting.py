"""Operations and bytes of a function, counted from its jaxpr."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.extend import core


class Work(NamedTuple):
    """What a function has to do.

    flops: of its convolutions and matrix products, two for a multiplication and an addition.
    bytes: of their operands and results, and of the function's arguments and results, each moved
      once: the least that is left when everything else is fused into them.
    """

    flops: float
    bytes: float


def count(function: Callable[..., Any], *arguments: Any) -> Work:
    """The work of `function(*arguments)` in the plain forms of its operations.

    Where the computation depends on the back end (`lax.platform_dependent`) it is the default that
    counts. Zeros between the elements of a spread operand (`lhs_dilation`) cost nothing.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments)
    inside = _of(jaxpr.jaxpr)
    outside = sum(map(_bytes, [*jaxpr.in_avals, *jaxpr.out_avals]))
    return Work(inside.flops, inside.bytes + outside)


def _of(jaxpr: core.Jaxpr) -> Work:
    flops, moved = 0.0, 0.0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        avals: list[Any] = [v.aval for v in [*eqn.invars, *eqn.outvars]]
        if name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = avals[0].shape
            flops += 2.0 * avals[-1].size * math.prod(shape[axis] for axis in contracted)
            moved += sum(map(_bytes, avals))
        elif name == "conv_general_dilated":
            kernel = avals[1]
            outputs = kernel.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
            spread = math.prod(eqn.params["lhs_dilation"])
            flops += 2.0 * avals[-1].size * kernel.size / outputs / spread
            moved += sum(map(_bytes, avals))
        elif name == "cond":
            branches = [_of(branch.jaxpr) for branch in eqn.params["branches"]]
            by_platform = eqn.params.get("branches_platforms") is not None
            work = branches[-1] if by_platform else max(branches)
            flops, moved = flops + work.flops, moved + work.bytes
        else:
            repeats = eqn.params["length"] if name == "scan" else 1
            for inner in _inner(eqn.params):
                work = _of(inner)
                flops, moved = flops + repeats * work.flops, moved + repeats * work.bytes
    return Work(flops, moved)


def _inner(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    for value in params.values():
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value


def _bytes(aval: Any) -> float:
    # Typed keys have no size in bytes of their own, and hardly any.
    return float(aval.size * getattr(aval.dtype, "itemsize", 0))
