"""The supervised bottleneck ResNet (He et al. 2016), version 1.5 as torchvision's and timm's, or version 1."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxclip import config
from jaxclip.models.layers import BatchNorm
from jaxclip.models.winograd import WIDE, Winograd

EXPANSION = 4


class Pointwise(nnx.Conv):
    """A 1x1 convolution as what it is, one linear map of every position: XLA's CPU backend trains it twice as fast."""

    def __call__(self, inputs: Float[Array, "n H W c"], out_sharding: None = None) -> Float[Array, "n h w e"]:
        """The map of every position, or with a stride of every so many."""
        stride = self.strides[0]  # type: ignore[index]
        return inputs[:, ::stride, ::stride].astype(self.dtype) @ self.kernel[0, 0].astype(self.dtype)


def conv(n_in: int, n_out: int, size: int, *, stride: int = 1, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Conv:
    """A square convolution without bias, padded by half its size on every side as in PyTorch (not XLA's "SAME")."""
    half = (size - 1) // 2
    kind = nnx.Conv
    if size == 1:
        kind = Pointwise
    elif size == 3 and stride == 1 and min(n_in, n_out) >= WIDE and dtype == jnp.float32:
        kind = Winograd
    return kind(
        n_in,
        n_out,
        (size, size),
        strides=(stride, stride),
        padding=((half, half), (half, half)),
        use_bias=False,
        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
        dtype=dtype,
        rngs=rngs,
    )


class Bottleneck(nnx.Module):
    """1x1, 3x3, 1x1, with the stride in the 3x3 (version 1.5) or in the first 1x1 (version 1)."""

    def __init__(self, n_in: int, planes: int, stride: int, stride_in_1x1: bool, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        n_out = planes * EXPANSION
        stride1, stride2 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = conv(n_in, planes, 1, stride=stride1, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(planes, dtype=dtype)
        self.conv2 = conv(planes, planes, 3, stride=stride2, dtype=dtype, rngs=rngs)
        self.bn2 = BatchNorm(planes, dtype=dtype)
        self.conv3 = conv(planes, n_out, 1, dtype=dtype, rngs=rngs)
        self.bn3 = BatchNorm(n_out, dtype=dtype)
        shortcut = stride > 1 or n_in != n_out
        self.shortcut_conv = conv(n_in, n_out, 1, stride=stride, dtype=dtype, rngs=rngs) if shortcut else None
        self.shortcut_bn = BatchNorm(n_out, dtype=dtype) if shortcut else None

    def __call__(self, x: Float[Array, "n H W c"]) -> Float[Array, "n h w e"]:
        """One residual block."""
        out = jax.nn.relu(self.bn1(self.conv1(x)))
        out = jax.nn.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.shortcut_conv is not None and self.shortcut_bn is not None:
            x = self.shortcut_bn(self.shortcut_conv(x))
        return jax.nn.relu(out + x)


class ResNet(nnx.Module):
    """7x7 stem → max pool → four stages of bottlenecks → mean over positions."""

    def __init__(self, cfg: config.ResNet, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.conv1 = conv(3, cfg.width, 7, stride=2, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(cfg.width, dtype=dtype)
        self.stages: nnx.List = nnx.List()
        n_in = cfg.width
        for i, depth in enumerate(cfg.layers):
            planes = cfg.width * 2**i
            stage: nnx.List = nnx.List()
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                stage.append(Bottleneck(n_in, planes, stride, cfg.stride_in_1x1, dtype=dtype, rngs=rngs))
                n_in = planes * EXPANSION
            self.stages.append(stage)
        self.stem_pool, self.dtype = cfg.stem_pool, dtype

    def __call__(
        self, images: Float[Array, "n H W 3"], layers: Sequence[int] = ()
    ) -> tuple[Float[Array, "n d"], Sequence[Float[Array, "n h w c"]]]:
        """Encodes normalised images.

        Args:
            images: Normalised pixels.
            layers: Which stages' outputs (1 to 4) to return beside.

        Returns:
            The penultimate representation h(x), and the feature maps of ``layers``.
        """
        x = images.astype(self.dtype)
        x = jax.nn.relu(self.bn1(self.conv1(x)))
        if self.stem_pool:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        outputs = {}
        for i, stage in enumerate(self.stages, start=1):
            for block in stage:
                x = block(x)
            outputs[i] = x
        return x.mean(axis=(1, 2), dtype=jnp.float32).astype(self.dtype), [outputs[i] for i in layers]
