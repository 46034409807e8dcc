"""The pre-norm transformer that CLIP's two towers and the supervised ViTs share; its blocks are stacked and scanned."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxclip.models.layers import LayerNorm, Linear, activate, apart, attention_of_one, each_part, together

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
        return self._residual(x, attention(q, k, v, self.causal, tokens).reshape(x.shape)).reshape(shape)

    def of_one(self, x: Float[Array, "n t w"], tokens: int, token: Int[Array, " n"] | int) -> Float[Array, "n w"]:
        """The same of one token in each row: what the others would become is not computed."""
        y = self.norm1(x)
        query, key, value = jnp.split(self.qkv.kernel[...], 3, axis=1)
        query_bias, _, value_bias = jnp.split(self.qkv.bias[...], 3)  # type: ignore[index]
        q = (one_of(y, token) @ query + query_bias).reshape(len(x), self.heads, -1)
        place = jnp.arange(x.shape[1])
        seen = place <= jnp.reshape(token, (-1, 1)) if self.causal else (place < tokens)[None]
        attended = attention_of_one(q, y, key, value, value_bias, seen)
        return self._residual(one_of(x, token), attended.astype(x.dtype))

    def _residual(self, x: Float[Array, "n w"], attended: Float[Array, "n w"]) -> Float[Array, "n w"]:
        """What follows the attention, token by token."""
        attended = self.out(attended)
        x = x + (attended if self.scale1 is None else attended * self.scale1[...].astype(x.dtype))
        hidden = self.mlp_out(activate(self.activation, self.mlp_in(self.norm2(x))))
        return x + (hidden if self.scale2 is None else hidden * self.scale2[...].astype(x.dtype))


def one_of(x: Float[Array, "n t w"], token: Int[Array, " n"] | int) -> Float[Array, "n w"]:
    """The token of each row with the number ``token``, or that of its own."""
    if isinstance(token, int):
        return x[:, token]
    return jnp.take_along_axis(x, token[:, None, None], axis=1)[:, 0]


class Transformer(nnx.Module):
    """``depth`` blocks whose parameters are stacked along a leading axis, run by one ``jax.lax.scan``.

    One block is compiled, whatever the depth; but in training the scan is unrolled, which spares it buffers of zeros,
    copies, and what XLA would rather compute again. ``remat`` recomputes each block's activations in the backward pass,
    and keeps the scan. In evaluation on a CPU, each block takes a large batch in parts, whose activations stay in the
    caches. Where one token of the output is all that is read, the last block computes that one alone, for the whole
    batch at once (but not in training with ``remat``).

    ``gathered`` is where a block's parameters go before it runs; None leaves them. Of parameters that are parts on
    several devices, XLA would leave the parts where they are, and gather the whole batch's activations instead.
    """

    def __init__(self, width: int, depth: int, heads: int, mlp_width: int, *, remat: bool, rngs: nnx.Rngs, **block):
        @nnx.split_rngs(splits=depth)
        @nnx.vmap
        def stack(rngs: nnx.Rngs) -> Block:
            return Block(width, heads, mlp_width, depth=depth, rngs=rngs, **block)

        self.blocks = stack(rngs)
        self.depth, self.remat = depth, remat
        self.gathered: jax.sharding.Sharding | None = None

    def __call__(
        self, x: Float[Array, "n t w"], layers: Sequence[int] = (), token: Int[Array, " n"] | int | None = None
    ) -> tuple[Float[Array, "n t w"] | Float[Array, "n w"], Float[Array, "l n t w"]]:
        """Runs the blocks.

        Args:
            x: Embedded tokens.
            layers: Which blocks' outputs to keep, counted from 1, each once.
            token: Of each row, or of all, the token whose output is wanted; None for all tokens.

        Returns:
            The last block's output, of ``token`` where it is given; and the kept outputs in the order of ``layers``.
            Only these are held in memory.
        """
        training, (n, tokens, width) = not self.blocks.qkv.deterministic, x.shape
        if training and has_flash_attention(x.dtype, width // self.blocks.heads):
            x = jnp.pad(x, ((0, 0), (0, tokens % 2), (0, 0)))  # once, not in the attention of every block
        graph, stacked = nnx.split(self.blocks)
        # Under remat the blocks stay one stack: a part of it would be copied, at the cost of what remat saves.
        alone = token is not None and self.depth not in layers and not (training and self.remat)
        count = self.depth - 1 if alone else self.depth
        first, last = _parted(stacked, count)
        slots = jnp.array([layers.index(i) if i in layers else len(layers) for i in range(1, count + 1)], int)

        def run(at_once: int, x: Array) -> tuple[Array, Array]:
            def step(carry, inputs):
                x, kept = carry
                block, slot = inputs
                if not training:  # of all blocks, as a part of them would be copied
                    block = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, block, keepdims=False), stacked)
                block = self._gather(block)
                x = each_part(functools.partial(nnx.merge(graph, block), tokens=tokens), x)
                if layers:
                    kept = kept.at[slot].set(x, mode="drop")  # the slot past the end is for the blocks not asked for
                return (x, kept), None

            if self.remat:
                step = jax.checkpoint(step, prevent_cse=False)
            elif not training:  # a gradient takes the blocks' parameters anew, rather than keep a second stack of them
                step = jax.checkpoint(step, prevent_cse=False, policy=_all_but_slices)
            x = apart(x, at_once)
            kept = jnp.zeros((len(layers), *x.shape), x.dtype)
            unroll = count if training and not self.remat else 1
            xs = first if training else jnp.arange(count)
            (x, kept), _ = jax.lax.scan(step, (x, kept), (xs, slots), unroll=max(unroll, 1))
            return together(x), jax.vmap(together)(kept)

        on_cpu = functools.partial(run, n if training else max(1, TOKENS // tokens))
        x, kept = jax.lax.platform_dependent(x, cpu=on_cpu, default=functools.partial(run, n))
        if token is None:
            x = x[:, :tokens]
        elif alone:
            x = nnx.merge(graph, self._gather(jax.tree.map(lambda a: a[0], last))).of_one(x, tokens, token)
        else:
            x = one_of(x, token)
        return x, kept[:, :, :tokens]

    def _gather(self, block: nnx.State) -> nnx.State:
        return block if self.gathered is None else jax.lax.with_sharding_constraint(block, self.gathered)


def _all_but_slices(primitive: Any, *_: Any, **__: Any) -> bool:
    """What a gradient keeps: not a slice, nor what only changes its shape."""
    return primitive.name not in ("dynamic_slice", "squeeze", "reshape")


def _parted(stacked: nnx.State, count: int) -> list[nnx.State]:
    """The first ``count`` blocks, and the rest: a split, whose gradient is a concatenation."""
    leaves, tree = jax.tree.flatten(stacked)
    parts = [jax.lax.split(a, (count, len(a) - count)) for a in leaves]
    return [jax.tree.unflatten(tree, part) for part in zip(*parts, strict=True)]
