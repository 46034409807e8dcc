"""The pre-norm transformer that CLIP's two towers and the supervised ViTs share; its blocks are stacked and scanned."""

import functools
import itertools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxclip.models.layers import LayerNorm, Linear, activate, apart, each_part, together

QUERIES = 256
"""Of so many at once XLA's CPU backend computes attention in one loop (``benchmarks/NOTES.md``)."""
TOKENS = 1600
"""Of a batch, what a CPU computes at once in evaluation, at the most (``benchmarks/NOTES.md``)."""


def attention(
    q: Float[Array, "n t h d"], k: Float[Array, "n t h d"], v: Float[Array, "n t h d"], causal: bool, tokens: int
) -> Float[Array, "n t h d"]:
    """Multi-head attention with a float32 softmax; a causal one sees no later token, and none sees what follows
    the first ``tokens``, which is padding.

    On a CPU, heads come first in memory, and it is the output that is divided by the softmax's sums: XLA then computes
    all of it in one loop over blocks, which is several times as fast, if the queries are no more than ``QUERIES``. On a
    GPU, cuDNN's flash attention where :func:`has_flash_attention`: JAX refuses its gradient for an odd number of
    tokens, which are padded for it, and it has no forward-mode derivative.
    """  # noqa: D205

    def heads_first(q: Array, k: Array, v: Array) -> Array:
        q, k, v = (a.transpose(0, 2, 1, 3) for a in (q, k[:, :tokens], v[:, :tokens]))
        seen = jnp.tri(q.shape[2], tokens, dtype=bool) if causal else None

        def attend(rows: slice) -> Array:
            logits = jnp.einsum("nhtd,nhsd->nhts", q[:, :, rows], k, preferred_element_type=jnp.float32)
            logits = logits * q.shape[-1] ** -0.5
            if seen is not None:
                logits = jnp.where(seen[rows], logits, -jnp.inf)
            weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
            out = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
            return (out / weights.sum(axis=-1, keepdims=True)).astype(v.dtype)

        count = -(-q.shape[2] // QUERIES)
        bounds = [q.shape[2] * i // count for i in range(count + 1)]
        blocks = [attend(slice(*ends)) for ends in itertools.pairwise(bounds)]
        return jnp.concatenate(blocks, axis=2).transpose(0, 2, 1, 3)

    def jaxs(q: Array, k: Array, v: Array, implementation: Literal["cudnn"] | None = None) -> Array:
        padded = tokens < k.shape[1] and not causal  # a causal mask hides padding anyway
        seen = jnp.full(len(k), tokens, jnp.int32) if padded else None
        return jax.nn.dot_product_attention(
            q, k, v, is_causal=causal, key_value_seq_lengths=seen, implementation=implementation
        )

    @jax.custom_vjp
    def flash(q: Array, k: Array, v: Array) -> Array:
        return jaxs(q, k, v, "cudnn")

    def even(q: Array, k: Array, v: Array) -> Array:
        q_even, k_even, v_even = (jnp.pad(a, ((0, 0), (0, a.shape[1] % 2), (0, 0), (0, 0))) for a in (q, k, v))
        return jaxs(q_even, k_even, v_even, "cudnn")[:, : q.shape[1]]

    flash.defvjp(functools.partial(jax.vjp, even), lambda pull, gradient: pull(gradient))
    other = flash if has_flash_attention(q.dtype, q.shape[-1]) else jaxs
    return jax.lax.platform_dependent(q, k, v, cpu=heads_first, default=other)


def has_flash_attention(dtype: jnp.dtype, width: int) -> bool:
    """Whether cuDNN's flash attention takes heads of this type and width: an NVIDIA GPU of Ampere's kind or later."""
    capability = str(getattr(jax.local_devices()[0], "compute_capability", ""))  # "9.0"; AMD's is a name
    ampere = capability.partition(".")[0].isdigit() and float(capability) >= 8
    return ampere and dtype in (jnp.bfloat16, jnp.float16) and width % 8 == 0 and width <= 128


class Block(nnx.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``; with LayerScale (Touvron et al. 2021) where asked."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        *,
        depth: int,
        activation: str,
        eps: float,
        causal: bool,
        layer_scale: bool,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        def linear(n_in: int, n_out: int, std: float) -> Linear:
            return Linear(n_in, n_out, kernel_init=nnx.initializers.normal(std), dtype=dtype, rngs=rngs)

        # openai/CLIP's initialisation; `depth` is that of the whole transformer.
        residual_std = width**-0.5 * (2 * depth) ** -0.5
        self.norm1 = LayerNorm(width, eps=eps, dtype=dtype, rngs=rngs)
        self.qkv = linear(width, 3 * width, width**-0.5)
        self.out = linear(width, width, residual_std)
        self.norm2 = LayerNorm(width, eps=eps, dtype=dtype, rngs=rngs)
        self.mlp_in = linear(width, mlp_width, (2 * width) ** -0.5)
        self.mlp_out = linear(mlp_width, width, residual_std)
        self.scale1 = nnx.Param(jnp.full(width, 1e-5)) if layer_scale else None
        self.scale2 = nnx.Param(jnp.full(width, 1e-5)) if layer_scale else None
        self.heads, self.causal, self.activation = heads, causal, activation

    def __call__(self, x: Float[Array, "n t w"], tokens: int) -> Float[Array, "n t w"]:
        """One block; the softmax is in float32 whatever the type of ``x``. No token sees those after ``tokens``.

        Tokens are rows within: of an array that is reshaped to be multiplied, XLA's CPU backend keeps both shapes.
        """
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        q, k, v = (a.reshape(*shape[:2], self.heads, -1) for a in self.qkv.parts(self.norm1(x), 3))
        attended = self.out(attention(q, k, v, self.causal, tokens).reshape(x.shape))
        x = x + (attended if self.scale1 is None else attended * self.scale1[...].astype(x.dtype))
        hidden = self.mlp_out(activate(self.activation, self.mlp_in(self.norm2(x))))
        return (x + (hidden if self.scale2 is None else hidden * self.scale2[...].astype(x.dtype))).reshape(shape)


class Transformer(nnx.Module):
    """``depth`` blocks whose parameters are stacked along a leading axis, run by one ``jax.lax.scan``.

    One block is compiled, whatever the depth; but in training the scan is unrolled, which spares it buffers of zeros,
    copies, and what XLA would rather compute again. ``remat`` recomputes each block's activations in the backward pass,
    and keeps the scan. In evaluation on a CPU, each block takes a large batch in parts, whose activations stay in the
    caches.
    """

    def __init__(self, width: int, depth: int, heads: int, mlp_width: int, *, remat: bool, rngs: nnx.Rngs, **block):
        @nnx.split_rngs(splits=depth)
        @nnx.vmap
        def stack(rngs: nnx.Rngs) -> Block:
            return Block(width, heads, mlp_width, depth=depth, rngs=rngs, **block)

        self.blocks = stack(rngs)
        self.depth, self.remat = depth, remat

    def __call__(
        self, x: Float[Array, "n t w"], layers: Sequence[int] = ()
    ) -> tuple[Float[Array, "n t w"], Float[Array, "l n t w"]]:
        """Runs the blocks.

        Args:
            x: Embedded tokens.
            layers: Which blocks' outputs to keep, counted from 1.

        Returns:
            The last block's output, and the kept outputs in the order of ``layers``. Only these are held in memory.
        """
        training, (n, tokens, width) = not self.blocks.qkv.deterministic, x.shape
        if training and has_flash_attention(x.dtype, width // self.blocks.heads):
            x = jnp.pad(x, ((0, 0), (0, tokens % 2), (0, 0)))  # once, not in the attention of every block
        run = functools.partial(self._run, tuple(layers), tokens, self.depth if training and not self.remat else 1)
        on_cpu = functools.partial(run, n if training else max(1, TOKENS // tokens))
        x, kept = jax.lax.platform_dependent(x, cpu=on_cpu, default=functools.partial(run, n))
        return x[:, :tokens], kept[:, :, :tokens]

    def _run(
        self, layers: tuple[int, ...], tokens: int, unroll: int, at_once: int, x: Float[Array, "n t w"]
    ) -> tuple[Float[Array, "n t w"], Float[Array, "l n t w"]]:
        graph, stacked = nnx.split(self.blocks)
        slots = jnp.array([layers.index(i) if i in layers else len(layers) for i in range(1, self.depth + 1)])

        def step(carry, inputs):
            x, kept = carry
            block, slot = inputs
            x = each_part(functools.partial(nnx.merge(graph, block), tokens=tokens), x)
            if layers:
                kept = kept.at[slot].set(x, mode="drop")  # the slot past the end is for the blocks not asked for
            return (x, kept), None

        step = jax.checkpoint(step, prevent_cse=False) if self.remat else step
        x = apart(x, at_once)
        kept = jnp.zeros((len(layers), *x.shape), x.dtype)
        (x, kept), _ = jax.lax.scan(step, (x, kept), (stacked, slots), unroll=unroll)
        return together(x), jax.vmap(together)(kept)
