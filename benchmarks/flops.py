"""How much arithmetic a tower is as its paper defines it, and how much a JAX function is, counted from its program."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclip.config import CLIPResNet, ModelConfig, Preprocess, Text, Vision, ViT
from jaxclip.models import clip, text


@functools.cache
def encoder_flops(vision: Vision) -> int:
    """Operations of encoding one picture by CLIP's or a supervised tower, with all tokens in every block.

    Not by one with CoCa's attentional pool. jaxclip leaves out what cannot change the result: in a ViT's last block all
    but the class token, and the keys and values of an attention that has one query.
    """
    assert not isinstance(vision, ViT) or vision.pool != "attention"
    cfg = ModelConfig("one", vision, Preprocess(vision.image_size), num_classes=1)
    graph, state = nnx.split(clip.abstract(cfg))
    layers = (vision.layers,) if isinstance(vision, ViT) else ()  # to keep its output is to compute all of it
    image = jax.ShapeDtypeStruct((1, vision.image_size, vision.image_size, 3), "float32")
    count = flops(lambda state, image: nnx.merge(graph, state).encode_image(image, layers)[0], state, image)
    if isinstance(vision, CLIPResNet):
        count += (vision.image_size // 32) ** 2 * 2 * 2 * (vision.width * 32) ** 2
    return count


def text_flops(cfg: Text) -> int:
    """Operations of encoding one text of the full context length, with all tokens in every block."""
    tower = nnx.eval_shape(lambda: text.Text(cfg, dtype=jnp.dtype("float32"), remat=False, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(tower)
    x = jax.ShapeDtypeStruct((1, cfg.context_length, cfg.width), "float32")
    blocks = flops(lambda state, x: nnx.merge(graph, state).transformer(x)[0], state, x)
    return blocks + 2 * cfg.width * cfg.output_dim


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
