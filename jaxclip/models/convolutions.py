"""Convolutions without bias, as the ResNets have them: XLA's, or what computes the same and is faster on a CPU."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxclip.models.layers import multiply, product
from jaxclip.models.winograd import WIDE, conv3x3, kernel_gradient, picture_gradient


def conv(n_in: int, n_out: int, size: int, *, stride: int = 1, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Conv:
    """A square convolution without bias, padded by half its size on every side as in PyTorch (not XLA's "SAME")."""
    half = (size - 1) // 2
    kind = {1: Pointwise, 3: Conv3x3}.get(size, nnx.Conv)
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


class Pointwise(nnx.Conv):
    """A 1x1 convolution as what it is, one linear map of every position: see :class:`~jaxclip.models.layers.Linear`."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.deterministic = True

    def __call__(self, inputs: Float[Array, "n H W c"], out_sharding: None = None) -> Float[Array, "n h w e"]:
        """The map of every position, or with a stride of every so many."""
        stride = self.strides[0]  # type: ignore[index]
        linear = multiply if self.deterministic else product
        return linear(inputs[:, ::stride, ::stride].astype(self.dtype), self.kernel[0, 0].astype(self.dtype))


class Conv3x3(nnx.Conv):
    """A 3x3 convolution padded by 1, as XLA does it; on a CPU as what is faster there.

    In evaluation, with stride 1 and many channels: :func:`conv3x3`. In training: :func:`trained`. Both in float32,
    whatever ``dtype``: so does XLA's CPU backend convolve bfloat16.
    ``deterministic`` is toggled by nnx's ``model.train()`` and ``model.eval()``; a new model is in evaluation mode.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.deterministic = True

    def __call__(self, inputs: Float[Array, "n H W c"], out_sharding: Any = None) -> Float[Array, "n h w e"]:
        """The convolution."""
        stride = self.strides[0]  # type: ignore[index]
        plain = functools.partial(_convolve, stride=stride)
        x, kernel = inputs.astype(self.dtype), self.kernel[...].astype(self.dtype)
        if self.deterministic and not _is_wide(stride, kernel):
            return plain(x, kernel)
        convolve = conv3x3 if self.deterministic else functools.partial(trained, stride)

        def on_cpu(x: Array, kernel: Array) -> Array:
            return convolve(x.astype(jnp.float32), kernel.astype(jnp.float32)).astype(self.dtype)

        return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=plain)


def _convolve(x: Float[Array, "n H W c"], kernel: Float[Array, "3 3 c e"], stride: int) -> Float[Array, "n h w e"]:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def trained(stride: int, x: Float[Array, "n H W c"], kernel: Float[Array, "3 3 c e"]) -> Float[Array, "n h w e"]:
    """The convolution, forward and backward as is fastest on a CPU.

    With stride 1 and many channels, all three are :mod:`~jaxclip.models.winograd`'s. Else they are XLA's, but for the
    kernel's gradient: nine matrix products, one for each of its pixels.
    """
    return conv3x3(x, kernel) if _is_wide(stride, kernel) else _convolve(x, kernel, stride)


def _is_wide(stride: int, kernel: Float[Array, "3 3 c e"]) -> bool:
    return stride == 1 and min(kernel.shape[2:]) >= WIDE


def _trained_forward(stride: int, x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return trained(stride, x, kernel), (x, kernel)


def _trained_backward(stride: int, saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    if _is_wide(stride, kernel):
        return picture_gradient(kernel, gradient), kernel_gradient(x, gradient)
    (of_x,) = jax.linear_transpose(lambda x: _convolve(x, kernel, stride), x)(gradient)
    _, height, width, c = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = gradient.reshape(-1, gradient.shape[-1])
    seen = [
        padded[:, i : i + height : stride, j : j + width : stride].reshape(-1, c) for i in range(3) for j in range(3)
    ]
    of_kernel = jnp.stack([x.T @ rows for x in seen])
    return of_x, of_kernel.reshape(kernel.shape)


trained.defvjp(_trained_forward, _trained_backward)
