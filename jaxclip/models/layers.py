"""What several towers share: activations, linear maps, attention of one query, parts of a batch, norms, positions."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

_ROOT, _CUBE = (2 / math.pi) ** 0.5, 0.044715
"""Of the tanh form of GELU (Hendrycks and Gimpel 2016): ``x / 2 (1 + tanh(root (x + cube x³)))``."""


def _gelu(x: Array) -> Array:
    """By erf, as PyTorch: jax.nn's erfc takes a CPU twice as long."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


def _gelu_slope(x: Array) -> Array:
    return 0.5 * (1 - jax.lax.erf(x * -(0.5**0.5))) + x * jnp.exp(-0.5 * x * x) * (2 * math.pi) ** -0.5


def _gelu_tanh_slope(x: Array) -> Array:
    rest = jax.nn.sigmoid(-(_ROOT * x * (2 + 2 * _CUBE * x * x)))
    return (1 - rest) * (1 + rest * x * _ROOT * (2 + 6 * _CUBE * x * x))


def _quick_gelu_slope(x: Array) -> Array:
    rest = jax.nn.sigmoid(-1.702 * x)
    return (1 - rest) * (1 + 1.702 * x * rest)


ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "gelu": (_gelu, _gelu_slope),
    "gelu_tanh": (functools.partial(jax.nn.gelu, approximate=True), _gelu_tanh_slope),
    "quick_gelu": (lambda x: x * jax.nn.sigmoid(1.702 * x), _quick_gelu_slope),
}
"""Each with its derivative, which shares no expression with it: what both would share, XLA's CPU backend writes out in
the forward pass and reads in the backward pass."""


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def activate(name: str, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """One of ``ACTIVATIONS``, computed in float32 whatever the type of ``x``.

    But on an NVIDIA GPU in 16 bits both GELUs have the tanh form, and in the type of ``x``: so cuBLAS computes them,
    from its float32 sums, within the product before. The two are 5e-4 apart at most (``benchmarks/NOTES.md``).
    """

    def wide(x: Array) -> Array:
        return ACTIVATIONS[name][0](x.astype(jnp.float32)).astype(x.dtype)

    if _within_product(name, x):
        return jax.lax.platform_dependent(x, cuda=ACTIVATIONS["gelu_tanh"][0], default=wide)
    return wide(x)


@activate.defjvp
def _activate_jvp(name: str, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    wide, slope = x.astype(jnp.float32), ACTIVATIONS[name][1]
    if _within_product(name, x):
        along = jax.lax.platform_dependent(wide, cuda=ACTIVATIONS["gelu_tanh"][1], default=slope)
    else:
        along = slope(wide)
    return activate(name, x), (along * tangent.astype(jnp.float32)).astype(x.dtype)


def _within_product(name: str, x: Array) -> bool:
    """Whether cuBLAS has this activation."""
    return x.dtype != jnp.float32 and name in ("gelu", "gelu_tanh")


class Linear(nnx.Linear):
    """``x @ kernel + bias``, in training by :func:`product`.

    ``deterministic`` is toggled by nnx's ``model.train()`` and ``model.eval()``; a new model is in evaluation mode,
    where it has forward-mode derivatives too.
    """

    deterministic = True

    def __call__(self, inputs: Float[Array, "*n c"], out_sharding: None = None) -> Float[Array, "*n e"]:
        """The affine map of every row."""
        return self._affine(*self._operands(inputs))

    def parts(self, inputs: Float[Array, "*n c"], count: int) -> list[Float[Array, "*n e"]]:
        """The affine map of every row, in equal parts.

        On an NVIDIA GPU each is a product of its own: cuDNN's attention wants them apart in memory.
        """

        def whole(*operands: Array) -> list[Array]:
            return jnp.split(self._affine(*operands), count, axis=-1)

        def each(x: Array, *weights: Array) -> list[Array]:
            return [
                self._affine(x, *part) for part in zip(*(jnp.split(a, count, axis=-1) for a in weights), strict=True)
            ]

        return jax.lax.platform_dependent(*self._operands(inputs), cuda=each, default=whole)

    def _operands(self, inputs: Array) -> list[Array]:
        weights = [self.kernel, *([] if self.bias is None else [self.bias])]
        return [inputs.astype(self.dtype), *(a[...].astype(self.dtype) for a in weights)]

    def _affine(self, x: Array, kernel: Array, bias: Array | None = None) -> Array:
        out = (multiply if self.deterministic else product)(x, kernel)
        return out if bias is None else out + bias


def multiply(x: Float[Array, "*n c"], kernel: Float[Array, "c e"]) -> Float[Array, "*n e"]:
    """``x @ kernel`` in their type, summed in float32.

    XLA's CPU backend multiplies bfloat16 by bfloat16 instructions (AMX, AVX-512) only where a float32 result is asked
    for; else it widens both operands to float32 first. Only rows times columns as they are in memory: where XLA folds a
    transpose into such a product, it fails when it is run.
    """
    if x.dtype != jnp.bfloat16:
        return x @ kernel

    def summed(x: Array, kernel: Array) -> Array:
        return jnp.matmul(x, kernel, preferred_element_type=jnp.float32).astype(x.dtype)

    return jax.lax.platform_dependent(x, kernel, cpu=summed, default=jnp.matmul)


@jax.custom_vjp
def product(x: Float[Array, "*n c"], kernel: Float[Array, "c e"]) -> Float[Array, "*n e"]:
    """``x @ kernel``, with the kernel's gradient as ``xᵀ @ gradient``, which reads both in the order of memory.

    JAX's own rule has the transpose of it, for which XLA's CPU backend transposes the whole gradient, slowly.
    """
    return multiply(x, kernel)


def _product_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    return gradient @ kernel.T, x.reshape(-1, x.shape[-1]).T @ gradient.reshape(-1, gradient.shape[-1])


product.defvjp(lambda x, kernel: (multiply(x, kernel), (x, kernel)), _product_backward)


def attention_of_one(
    query: Float[Array, "n h d"],
    x: Float[Array, "n t w"],
    key: Float[Array, "w h*d"],
    value: Float[Array, "w h*d"],
    value_bias: Float[Array, " h*d"],
    seen: Bool[Array, "#n t"] | None = None,
) -> Float[Array, "n h*d"]:
    """Multi-head attention with one query in each row, which needs no token's key or value; float32.

    Since (x K) q = x (K q) and a (x V) = (a x) V, the query is multiplied by the keys' kernel, and the mean of the
    tokens that it attends to by the values': the same function, and no product of all tokens with a square matrix. A
    bias of keys adds the same number to all of a query's logits, which no softmax sees.

    Args:
        query: In heads.
        x: What keys and values are linear maps of.
        key: The keys' kernel.
        value: The values' kernel.
        value_bias: Their bias.
        seen: The tokens that the query sees; None for all.
    """
    n, heads, width = query.shape
    query, x = query.astype(jnp.float32), x.astype(jnp.float32)
    asked = jnp.einsum("nhd,whd->nhw", query, key.reshape(-1, heads, width))
    logits = jnp.einsum("nhw,ntw->nht", asked, x) * width**-0.5
    weights = jax.nn.softmax(logits if seen is None else jnp.where(seen[:, None], logits, -jnp.inf))
    mean = jnp.einsum("nht,ntw->nhw", weights, x)
    return jnp.einsum("nhw,whd->nhd", mean, value.reshape(-1, heads, width)).reshape(n, -1) + value_bias


def joined(
    branch: Float[Array, "n h w c"], shortcut: Float[Array, "n h w c"], *, rows: bool
) -> Float[Array, "n h w c"]:
    """``relu(branch + shortcut)`` at the end of a residual block, in the form that XLA's CPU backend computes once.

    That is :func:`relu_once`, in the shape in which it is read: what is reshaped, it computes anew wherever it is read,
    and before it the joins of all blocks before.

    Args:
        branch: What the block computed.
        shortcut: What goes around it.
        rows: Whether 1x1 convolutions read it next, which are products of rows; else it is 3x3 ones.
    """
    x = branch + shortcut
    x = x.reshape(-1, x.shape[-1]) if rows else x
    return relu_once(x).reshape(branch.shape)


def relu_once(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """``relu(x)`` as a choice among arrays, which XLA's CPU backend computes once for a convolution and its gradient.

    A maximum with zero it computes anew wherever it is read: in a 3x3 kernel's gradient while it transposes it, at a
    seventh of the speed.
    """
    return jnp.where(x <= 0, 0, x)


def apart(x: Float[Array, "n ..."], most: int) -> Float[Array, "k m ..."]:
    """A batch in k equal parts of at most ``most``, as large as n divides; :func:`together` is the inverse.

    A part is every k-th of the batch, so that each of several devices has some of it.
    """
    size = max((size for size in range(1, min(most, len(x)) + 1) if len(x) % size == 0), default=1)
    return x.reshape(size, len(x) // size, *x.shape[1:]).swapaxes(0, 1)


def each_part(function: Callable[[Array], Any], parts: Float[Array, "k m ..."]) -> Any:
    """``function`` of every part of :func:`apart`, one after the other; without a loop where there is one part."""
    if len(parts) == 1:
        return jax.tree.map(lambda x: x[None], function(parts[0]))
    return jax.lax.map(function, parts)


def together(parts: Float[Array, "k m ..."]) -> Float[Array, "n ..."]:
    """The batch whose parts :func:`apart` gave."""
    return parts.swapaxes(0, 1).reshape(-1, *parts.shape[2:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def layer_normalized(
    eps: float, x: Float[Array, "*n c"], scale: Float[Array, " c"], bias: Float[Array, " c"]
) -> Float[Array, "*n c"]:
    """``(x - mean) / sqrt(var + eps) * scale + bias`` of every row in float32, with the gradient written out.

    JAX's own is a sum of what passes through each moment, whose last steps XLA's CPU backend computes anew wherever the
    sum is read: in a residual stream, in every block below. And it keeps float32 copies of ``x``.
    """
    return _layer_normalized_forward(eps, x, scale, bias)[0]


def _layer_normalized_forward(eps: float, x: Array, scale: Array, bias: Array) -> tuple[Array, tuple[Array, ...]]:
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(wide - mean).mean(-1, keepdims=True) + eps)
    saved = jax.lax.optimization_barrier((mean, inverse))
    return (wide - mean) * inverse * scale + bias, (x, *saved, scale)


def _layer_normalized_backward(eps: float, saved: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array]:
    x, mean, inverse, scale = saved
    y = (x.astype(jnp.float32) - mean) * inverse
    rows, slope = tuple(range(x.ndim - 1)), gradient * scale
    along = (slope * y).mean(-1, keepdims=True)
    of_x = inverse * (slope - slope.mean(-1, keepdims=True) - y * along)
    return of_x.astype(x.dtype), (gradient * y).sum(rows), gradient.sum(rows)


layer_normalized.defvjp(_layer_normalized_forward, _layer_normalized_backward)


class LayerNorm(nnx.LayerNorm):
    """A layer norm with float32 moments, whatever type it reads and returns; in training :func:`layer_normalized`.

    ``deterministic`` is toggled by nnx's ``model.train()`` and ``model.eval()``; a new model is in evaluation mode.
    """

    deterministic = True

    def __init__(self, width: int, *, eps: float, dtype: jnp.dtype, rngs: nnx.Rngs):
        super().__init__(width, epsilon=eps, dtype=dtype, use_fast_variance=False, rngs=rngs)

    def __call__(self, x: Float[Array, "*n c"], *, mask: Any = None) -> Float[Array, "*n c"]:
        """Every row, normalised by its own moments."""
        if self.deterministic:
            return super().__call__(x)
        return layer_normalized(self.epsilon, x, self.scale[...], self.bias[...]).astype(self.dtype)  # type: ignore[index]


def _scaled(x: Array, mean: Array, gain: Array, bias: Array) -> Array:
    """``(x - mean) * gain + bias``, in one multiplication and one addition for each element."""
    return x * gain + (bias - mean * gain)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def batch_normalized(
    eps: float, x: Float[Array, "*n c"], scale: Float[Array, " c"], bias: Float[Array, " c"]
) -> tuple[Float[Array, "*n c"], Float[Array, " c"], Float[Array, " c"]]:
    """``(x - mean) / sqrt(var + eps) * scale + bias``, with the mean and the variance of every channel.

    The gradient is that of the first result, written out: three readings of its own gradient and two of ``x``.
    """
    return _batch_normalized_forward(eps, x, scale, bias)[0]


def _batch_normalized_forward(eps: float, x: Array, scale: Array, bias: Array) -> tuple[Any, tuple[Array, ...]]:
    rows = tuple(range(x.ndim - 1))
    mean = x.mean(rows)
    var = jnp.square(x - mean).mean(rows)
    inverse = jax.lax.rsqrt(var + eps)
    gain = scale * inverse
    return (_scaled(x, mean, gain, bias), mean, var), (x, mean, inverse, gain)


def _batch_normalized_backward(eps: float, saved: tuple[Array, ...], gradients: Any) -> tuple[Array, Array, Array]:
    x, mean, inverse, gain = saved
    gradient, _, _ = gradients
    rows, count = tuple(range(x.ndim - 1)), math.prod(x.shape[:-1])
    # Not (x - mean) * inverse: XLA's CPU backend would write out what the variance has in common with it.
    of_scale, of_bias = (gradient * (x * inverse - mean * inverse)).sum(rows), gradient.sum(rows)
    slope = gain * inverse * of_scale / count
    return gradient * gain - (x * slope + (gain * of_bias / count - mean * slope)), of_scale, of_bias


batch_normalized.defvjp(_batch_normalized_forward, _batch_normalized_backward)


class BatchNorm(nnx.Module):
    """Batch normalisation over all axes but the last, as PyTorch's: float32 moments, unbiased running variance.

    ``use_running_average`` is toggled by nnx's ``model.train()`` and ``model.eval()``; a new model is in evaluation
    mode. When the batch is sharded over devices under ``jit``, the moments are those of the global batch.
    """

    def __init__(self, features: int, *, dtype: jnp.dtype, eps: float = 1e-5, momentum: float = 0.1):
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))
        self.dtype, self.eps, self.momentum = dtype, eps, momentum
        self.use_running_average = True

    def __call__(self, x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        """Normalises ``x``; in training mode by its own moments, which are also folded into the running ones."""
        scale, bias, mean, var = (a[...] for a in (self.scale, self.bias, self.mean, self.var))
        if self.use_running_average:
            gain = scale * jax.lax.rsqrt(var + self.eps)
            return _scaled(x, mean, gain, bias).astype(self.dtype)
        count = math.prod(x.shape[:-1])
        y, batch_mean, batch_var = batch_normalized(self.eps, x.astype(jnp.float32), scale, bias)
        self.mean[...] = (1 - self.momentum) * mean + self.momentum * batch_mean
        self.var[...] = (1 - self.momentum) * var + self.momentum * batch_var * (count / max(count - 1, 1))
        return y.astype(self.dtype)


def interpolate_positions(positions: Float[Array, "1+t w"], grid: tuple[int, int]) -> Float[Array, "1+u w"]:
    """Position embeddings for another grid of patches; the first row (the class token's) is kept.

    Args:
        positions: One row for the class token, then those of a square grid, row by row.
        grid: Rows and columns of the wanted grid.

    Returns:
        ``positions`` itself where the grid is the same; else an anti-aliased bicubic resize, as open_clip's
        ``resize_pos_embed`` and timm's ``resample_abs_pos_embed``.
    """
    side = math.isqrt(positions.shape[0] - 1)
    if grid == (side, side):
        return positions
    first, rest = positions[:1], positions[1:]
    resized = jax.image.resize(rest.reshape(side, side, -1), (*grid, rest.shape[-1]), method="cubic")
    return jnp.concatenate([first, resized.reshape(-1, rest.shape[-1])])
