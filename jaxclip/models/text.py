"""CLIP's text tower: a causal transformer whose end-of-text token is the sentence."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxclip import config
from jaxclip.models.layers import LayerNorm, Linear
from jaxclip.models.transformer import Transformer


class Text(nnx.Module):
    """Token ids → embeddings → transformer → one token → projection."""

    def __init__(self, cfg: config.Text, *, dtype: jnp.dtype, remat: bool, rngs: nnx.Rngs):
        normal = nnx.initializers.normal  # with openai/CLIP's standard deviations
        self.token_embedding = nnx.Embed(cfg.vocab_size, cfg.width, embedding_init=normal(0.02), dtype=dtype, rngs=rngs)
        self.positions = nnx.Param(normal(0.01)(rngs.params(), (cfg.context_length, cfg.width)))
        self.transformer = Transformer(
            cfg.width,
            cfg.layers,
            cfg.heads,
            cfg.mlp_width,
            activation=cfg.activation,
            eps=cfg.norm_eps,
            causal=cfg.causal,
            layer_scale=cfg.layer_scale,
            dtype=dtype,
            remat=remat,
            rngs=rngs,
        )
        self.norm_post = LayerNorm(cfg.width, eps=cfg.norm_eps, dtype=dtype, rngs=rngs)
        self.projection = Linear(
            cfg.width,
            cfg.output_dim,
            use_bias=cfg.projection_bias,
            kernel_init=normal(cfg.width**-0.5),
            dtype=dtype,
            rngs=rngs,
        )
        self.cfg, self.dtype = cfg, dtype

    def __call__(self, tokens: Int[Array, "n t"]) -> Float[Array, "n d"]:
        """Encodes token ids, padded to the context length."""
        x = self.token_embedding(tokens) + self.positions[: tokens.shape[1]].astype(self.dtype)
        position: Int[Array, " n"] | int
        match self.cfg.pool:
            case "argmax":
                position = jnp.argmax(tokens, axis=1)
            case "eos":
                position = jnp.argmax(tokens == self.cfg.eos_id, axis=1)
            case "first":
                position = 0
            case "last":
                position = tokens.shape[1] - 1
        x, _ = self.transformer(x, token=position)
        return self.projection(self.norm_post(x))
