"""The vision transformer: CLIP's (Radford et al. 2021) and the supervised one (Dosovitskiy et al. 2021)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxclip import config
from jaxclip.models.layers import LayerNorm, Linear, attention_of_one, interpolate_positions
from jaxclip.models.transformer import Transformer


class ViT(nnx.Module):
    """Patches → tokens → transformer → one token → projection.

    The patch embedding is a strided convolution written as what it is: one linear map of flattened patches.
    """

    def __init__(self, cfg: config.ViT, *, dtype: jnp.dtype, remat: bool, rngs: nnx.Rngs):
        normal = nnx.initializers.normal(cfg.width**-0.5)
        tokens = (cfg.image_size // cfg.patch_size) ** 2 + 1
        self.patch_embedding = Linear(3 * cfg.patch_size**2, cfg.width, use_bias=cfg.patch_bias, dtype=dtype, rngs=rngs)
        self.class_token = nnx.Param(normal(rngs.params(), (cfg.width,)))
        self.positions = nnx.Param(normal(rngs.params(), (tokens, cfg.width)))
        self.norm_pre = LayerNorm(cfg.width, eps=cfg.norm_eps, dtype=dtype, rngs=rngs) if cfg.pre_norm else None
        self.transformer = Transformer(
            cfg.width,
            cfg.layers,
            cfg.heads,
            cfg.mlp_width,
            activation=cfg.activation,
            eps=cfg.norm_eps,
            causal=False,
            layer_scale=cfg.layer_scale,
            dtype=dtype,
            remat=remat,
            rngs=rngs,
        )
        self.attention_pool = AttentionPool(cfg, dtype=dtype, rngs=rngs) if cfg.pool == "attention" else None
        pooled_width = cfg.output_dim if cfg.pool == "attention" and cfg.output_dim else cfg.width
        self.norm_post = LayerNorm(pooled_width, eps=cfg.norm_eps, dtype=dtype, rngs=rngs)
        self.projection = (
            nnx.Param(normal(rngs.params(), (pooled_width, cfg.output_dim))) if cfg.output_dim is not None else None
        )
        self.cfg, self.dtype = cfg, dtype

    def __call__(
        self, images: Float[Array, "n H W 3"], layers: Sequence[int] = ()
    ) -> tuple[Float[Array, "n d"], Sequence[Float[Array, "n t w"]]]:
        """Encodes normalised images.

        Args:
            images: Any multiple of the patch size; position embeddings are interpolated where it is not the native one.
            layers: Which blocks' outputs to return beside, counted from 1: all tokens, the class token first.

        Returns:
            The representation h(x), and the outputs of ``layers``.
        """
        n, height, width, _ = images.shape
        p = self.cfg.patch_size
        grid = height // p, width // p
        patches = images.reshape(n, grid[0], p, grid[1], p, 3).swapaxes(2, 3).reshape(n, grid[0] * grid[1], p * p * 3)
        x = self.patch_embedding(patches)
        class_token = jnp.broadcast_to(self.class_token[...].astype(self.dtype), (n, 1, x.shape[-1]))
        x = jnp.concatenate([class_token, x], axis=1)
        x = x + interpolate_positions(self.positions[...], grid).astype(self.dtype)
        if self.norm_pre is not None:
            x = self.norm_pre(x)
        once = list(dict.fromkeys(layers))
        x, kept = self.transformer(x, once, token=0 if self.cfg.pool == "class" else None)
        x = self.pool(x)
        h = x if self.projection is None else x @ self.projection[...].astype(self.dtype)
        return h, [kept[once.index(layer)] for layer in layers]

    def pool(self, x: Float[Array, "n t w"] | Float[Array, "n w"]) -> Float[Array, "n v"]:
        """One normalised token for each image: the class token, the mean of the patches, or attentional pooling.

        Args:
            x: The class token where it is what is pooled; else all tokens.
        """
        if self.attention_pool is not None:
            return self.norm_post(self.attention_pool(x))
        if self.cfg.pool == "class":
            return self.norm_post(x)
        if self.cfg.norm_after_pool:
            return self.norm_post(x[:, 1:].mean(axis=1))
        return self.norm_post(x)[:, 1:].mean(axis=1)


class AttentionPool(nnx.Module):
    """Learned queries attend to all tokens (CoCa, Yu et al. 2022; open_clip's ``AttentionalPooler``).

    Queries do not see one another and the first is the output, so only the first is computed.
    """

    def __init__(self, cfg: config.ViT, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        width = cfg.output_dim or cfg.width
        self.queries = nnx.Param(jax.random.normal(rngs.params(), (cfg.pool_queries, width)))
        self.norm_q = LayerNorm(
            width, eps=1e-5, dtype=dtype, rngs=rngs
        )  # open_clip's, whatever the tower's other norms
        self.norm_kv = LayerNorm(cfg.width, eps=1e-5, dtype=dtype, rngs=rngs)
        self.q = Linear(width, width, dtype=dtype, rngs=rngs)
        self.k = Linear(cfg.width, width, dtype=dtype, rngs=rngs)
        self.v = Linear(cfg.width, width, dtype=dtype, rngs=rngs)
        self.out = Linear(width, width, dtype=dtype, rngs=rngs)
        self.heads = cfg.pool_heads

    def __call__(self, x: Float[Array, "n t w"]) -> Float[Array, "n v"]:
        """The first query's output."""
        query = jnp.broadcast_to(self.q(self.norm_q(self.queries[:1])), (len(x), self.q.out_features))
        query, x = query.reshape(len(x), self.heads, -1), self.norm_kv(x)
        key, value, bias = self.k.kernel[...], self.v.kernel[...], self.v.bias[...]  # type: ignore[index]
        return self.out(attention_of_one(query, x, key, value, bias))
