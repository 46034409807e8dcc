"""The supervised ResNet (He et al. 2016): of bottlenecks, in torchvision's version 1.5 or in 1, or of basic blocks."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxclip import config
from jaxclip.models.convolutions import conv
from jaxclip.models.layers import BatchNorm, joined, relu_once

EXPANSION = 4


def max_pool(x: Float[Array, "n H W c"], training: bool) -> Float[Array, "n h w c"]:
    """Of 3x3 pixels, with a stride of 2, padded by 1; in training one axis after the other, by slices, whose gradient
    XLA's CPU backend finds several times as fast as that of its own pool.
    """  # noqa: D205
    if not training:
        return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    for axis in (1, 2):
        last = x.shape[axis] - 2
        x = functools.reduce(jnp.maximum, (jax.lax.slice_in_dim(x, i, i + last, 2, axis) for i in range(3)))
    return x


class Block(nnx.Module):
    """The shortcut around a residual branch: the identity, or a 1x1 convolution where the shape changes."""

    def __init__(self, n_in: int, n_out: int, stride: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        shortcut = stride > 1 or n_in != n_out
        self.shortcut_conv = conv(n_in, n_out, 1, stride=stride, dtype=dtype, rngs=rngs) if shortcut else None
        self.shortcut_bn = BatchNorm(n_out, dtype=dtype) if shortcut else None

    def shortcut(self, x: Float[Array, "n H W c"]) -> Float[Array, "n h w e"]:
        """What the branch is added to."""
        if self.shortcut_conv is None or self.shortcut_bn is None:
            return x
        return self.shortcut_bn(self.shortcut_conv(x))


class Bottleneck(Block):
    """1x1, 3x3, 1x1, with the stride in the 3x3 (version 1.5) or in the first 1x1 (version 1)."""

    def __init__(self, n_in: int, planes: int, stride: int, stride_in_1x1: bool, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        n_out = planes * EXPANSION
        super().__init__(n_in, n_out, stride, dtype=dtype, rngs=rngs)
        stride1, stride2 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = conv(n_in, planes, 1, stride=stride1, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(planes, dtype=dtype)
        self.conv2 = conv(planes, planes, 3, stride=stride2, dtype=dtype, rngs=rngs)
        self.bn2 = BatchNorm(planes, dtype=dtype)
        self.conv3 = conv(planes, n_out, 1, dtype=dtype, rngs=rngs)
        self.bn3 = BatchNorm(n_out, dtype=dtype)

    def __call__(self, x: Float[Array, "n H W c"]) -> Float[Array, "n h w e"]:
        """One residual block."""
        out = relu_once(self.bn1(self.conv1(x)))
        out = jax.nn.relu(self.bn2(self.conv2(out)))
        return joined(self.bn3(self.conv3(out)), self.shortcut(x), rows=True)


class Basic(Block):
    """3x3 twice, with the stride in the first (ResNet-18 and -34)."""

    def __init__(self, n_in: int, planes: int, stride: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        super().__init__(n_in, planes, stride, dtype=dtype, rngs=rngs)
        self.conv1 = conv(n_in, planes, 3, stride=stride, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(planes, dtype=dtype)
        self.conv2 = conv(planes, planes, 3, dtype=dtype, rngs=rngs)
        self.bn2 = BatchNorm(planes, dtype=dtype)

    def __call__(self, x: Float[Array, "n H W c"]) -> Float[Array, "n h w e"]:
        """One residual block."""
        out = jax.nn.relu(self.bn1(self.conv1(x)))
        return joined(self.bn2(self.conv2(out)), self.shortcut(x), rows=False)


class ResNet(nnx.Module):
    """Stem → max pool → stages of blocks → mean over positions."""

    def __init__(self, cfg: config.ResNet, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        size, stride = (7, 2) if cfg.stem == "7x7" else (3, 1)
        self.conv1 = conv(3, cfg.width, size, stride=stride, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(cfg.width, dtype=dtype)
        self.stages: nnx.List = nnx.List()
        n_in = cfg.width
        for i, depth in enumerate(cfg.layers):
            planes = cfg.width * 2**i
            stage: nnx.List = nnx.List()
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                if cfg.block == "basic":
                    stage.append(Basic(n_in, planes, stride, dtype=dtype, rngs=rngs))
                    n_in = planes
                else:
                    stage.append(Bottleneck(n_in, planes, stride, cfg.stride_in_1x1, dtype=dtype, rngs=rngs))
                    n_in = planes * EXPANSION
            self.stages.append(stage)
        self.dtype, self.deterministic = dtype, True

    def __call__(
        self, images: Float[Array, "n H W 3"], layers: Sequence[int] = ()
    ) -> tuple[Float[Array, "n d"], Sequence[Float[Array, "n h w c"]]]:
        """Encodes normalised images.

        Args:
            images: Normalised pixels.
            layers: Which stages' outputs to return beside, counted from 1.

        Returns:
            The penultimate representation h(x), and the feature maps of ``layers``.
        """
        x = images.astype(self.dtype)
        x = jax.nn.relu(self.bn1(self.conv1(x)))
        x = max_pool(x, not self.deterministic)
        outputs = {}
        for i, stage in enumerate(self.stages, start=1):
            for block in stage:
                x = block(x)
            outputs[i] = x
        return x.mean(axis=(1, 2), dtype=jnp.float32).astype(self.dtype), [outputs[i] for i in layers]
