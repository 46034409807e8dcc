"""How much arithmetic a JAX function is: counted from its program, so that it is right for every model."""

import math
from collections.abc import Callable
from typing import Any

import jax


def flops(function: Callable[..., Any], *args: Any) -> int:
    """Floating-point operations of the matrix products and convolutions, two for each multiply-add.

    A convolution counts as its definition, however it is computed. Of a condition's branches the longest counts.
    XLA's own cost analysis counts the body of a scan once, whatever its length; this counts every step.

    Args:
        function: Any function that JAX can trace.
        *args: Its arguments; ``jax.ShapeDtypeStruct`` in place of arrays will do.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: Any) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (summed, _), _ = eqn.params["dimension_numbers"]
            left = eqn.invars[0].aval.shape
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[axis] for axis in summed)
        elif eqn.primitive.name == "conv_general_dilated":
            kernel, outputs = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"].rhs_spec[0]
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) // kernel[outputs]
        elif eqn.primitive.name == "cond":
            total += max(map(_count, _programs(eqn.params["branches"])))
        else:
            inner = sum(_count(sub) for value in eqn.params.values() for sub in _programs(value))
            total += inner * eqn.params.get("length", 1)
    return total


def _programs(value: Any) -> list[Any]:
    """The programs within a parameter of an equation: a loop's body, a branch, a jitted function."""
    if isinstance(value, tuple | list):
        return [sub for part in value for sub in _programs(part)]
    value = getattr(value, "jaxpr", value)
    return [value] if hasattr(value, "eqns") else []
