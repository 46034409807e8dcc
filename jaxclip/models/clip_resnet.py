"""CLIP's ModifiedResNet (Radford et al. 2021, 2.4): three-convolution stem, anti-aliasing pools, attention pool."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxclip import config
from jaxclip.models.convolutions import conv
from jaxclip.models.layers import BatchNorm, Linear, attention_of_one, interpolate_positions, joined

EXPANSION = 4


def average_pool(x: Float[Array, "n H W c"]) -> Float[Array, "n H/2 W/2 c"]:
    """The mean of each 2x2 square, as a sum: a pool and what comes before it XLA joins in one slow loop on a CPU."""
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


class Bottleneck(nnx.Module):
    """1x1, 3x3, 1x1; every convolution has stride 1, and an average pool halves the size where ``stride`` is 2."""

    def __init__(self, n_in: int, planes: int, stride: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        n_out = planes * EXPANSION
        self.conv1, self.bn1 = conv(n_in, planes, 1, dtype=dtype, rngs=rngs), BatchNorm(planes, dtype=dtype)
        self.conv2, self.bn2 = conv(planes, planes, 3, dtype=dtype, rngs=rngs), BatchNorm(planes, dtype=dtype)
        self.conv3, self.bn3 = conv(planes, n_out, 1, dtype=dtype, rngs=rngs), BatchNorm(n_out, dtype=dtype)
        shortcut = stride > 1 or n_in != n_out
        self.shortcut_conv = conv(n_in, n_out, 1, dtype=dtype, rngs=rngs) if shortcut else None
        self.shortcut_bn = BatchNorm(n_out, dtype=dtype) if shortcut else None
        self.stride = stride

    def __call__(self, x: Float[Array, "n H W c"]) -> Float[Array, "n h w e"]:
        """One residual block."""
        out = jax.nn.relu(self.bn1(self.conv1(x)))
        out = jax.nn.relu(self.bn2(self.conv2(out)))
        if self.stride > 1:
            out, x = average_pool(out), average_pool(x)
        out = self.bn3(self.conv3(out))
        if self.shortcut_conv is not None and self.shortcut_bn is not None:
            x = self.shortcut_bn(self.shortcut_conv(x))
        return joined(out, x, rows=True)


class AttentionPool(nnx.Module):
    """The mean of the positions asks, all positions answer: multi-head attention with one query."""

    def __init__(self, positions: int, width: int, heads: int, n_out: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        normal = nnx.initializers.normal(width**-0.5)
        self.positions = nnx.Param(normal(rngs.params(), (positions + 1, width)))
        self.q = Linear(width, width, kernel_init=normal, dtype=dtype, rngs=rngs)
        self.k = Linear(width, width, kernel_init=normal, dtype=dtype, rngs=rngs)
        self.v = Linear(width, width, kernel_init=normal, dtype=dtype, rngs=rngs)
        self.out = Linear(width, n_out, kernel_init=normal, dtype=dtype, rngs=rngs)
        self.heads, self.dtype = heads, dtype

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n d"]:
        """Pools a feature map; position embeddings are interpolated where its size is not the native one."""
        n, *grid, c = x.shape
        x = x.reshape(n, -1, c)
        mean = x.mean(axis=1, keepdims=True, dtype=jnp.float32).astype(self.dtype)
        x = jnp.concatenate([mean, x], axis=1)
        x = x + interpolate_positions(self.positions[...], (grid[0], grid[1])).astype(self.dtype)
        query = self.q(x[:, 0]).reshape(n, self.heads, -1)
        key, value, bias = self.k.kernel[...], self.v.kernel[...], self.v.bias[...]  # type: ignore[index]
        return self.out(attention_of_one(query, x, key, value, bias))


class CLIPResNet(nnx.Module):
    """Stem → four stages of bottlenecks → attention pool."""

    def __init__(self, cfg: config.CLIPResNet, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        w = cfg.width
        self.conv1, self.bn1 = conv(3, w // 2, 3, stride=2, dtype=dtype, rngs=rngs), BatchNorm(w // 2, dtype=dtype)
        self.conv2, self.bn2 = conv(w // 2, w // 2, 3, dtype=dtype, rngs=rngs), BatchNorm(w // 2, dtype=dtype)
        self.conv3, self.bn3 = conv(w // 2, w, 3, dtype=dtype, rngs=rngs), BatchNorm(w, dtype=dtype)
        self.stages: nnx.List = nnx.List()
        n_in = w
        for i, depth in enumerate(cfg.layers):
            planes = w * 2**i
            stage: nnx.List = nnx.List()
            for j in range(depth):
                stage.append(Bottleneck(n_in, planes, 2 if i > 0 and j == 0 else 1, dtype=dtype, rngs=rngs))
                n_in = planes * EXPANSION
            self.stages.append(stage)
        self.pool = AttentionPool((cfg.image_size // 32) ** 2, n_in, cfg.heads, cfg.output_dim, dtype=dtype, rngs=rngs)
        self.dtype = dtype

    def __call__(
        self, images: Float[Array, "n H W 3"], layers: Sequence[int] = ()
    ) -> tuple[Float[Array, "n d"], Sequence[Float[Array, "n h w c"]]]:
        """Encodes normalised images (any multiple of 32 pixels).

        Args:
            images: Normalised pixels.
            layers: Which stages' outputs (1 to 4) to return beside.

        Returns:
            The representation h(x), and the feature maps of ``layers``.
        """
        x = images.astype(self.dtype)
        x = jax.nn.relu(self.bn1(self.conv1(x)))
        x = jax.nn.relu(self.bn2(self.conv2(x)))
        x = jax.nn.relu(self.bn3(self.conv3(x)))
        x = average_pool(x)
        outputs = {}
        for i, stage in enumerate(self.stages, start=1):
            for block in stage:
                x = block(x)
            outputs[i] = x
        return self.pool(x), [outputs[i] for i in layers]
