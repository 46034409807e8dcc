"""Convolutions without bias, as the ResNets have them: XLA's, or what computes the same and is faster on a CPU."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxclip.models.layers import multiply, product
from jaxclip.models.winograd import WIDE, conv3x3, picture_gradient


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

    deterministic = True

    def __call__(self, inputs: Float[Array, "n H W c"], out_sharding: None = None) -> Float[Array, "n h w e"]:
        """The map of every position, or with a stride of every so many."""
        stride = self.strides[0]  # type: ignore[index]
        linear = multiply if self.deterministic else product
        return linear(inputs[:, ::stride, ::stride].astype(self.dtype), self.kernel[0, 0].astype(self.dtype))


class Conv3x3(nnx.Conv):
    """A 3x3 convolution padded by 1, as XLA does it; on a CPU, with stride 1 and many channels, as is faster there.

    That is :func:`conv3x3` in evaluation and :func:`conv3x3_in_training` in training, in float32 whatever ``dtype``: so
    does XLA's CPU backend convolve bfloat16.
    ``deterministic`` is toggled by nnx's ``model.train()`` and ``model.eval()``; a new model is in evaluation mode.
    """

    deterministic = True

    def __call__(self, inputs: Float[Array, "n H W c"], out_sharding: None = None) -> Float[Array, "n h w e"]:
        """The convolution."""
        stride = self.strides[0]  # type: ignore[index]
        x, kernel = inputs.astype(self.dtype), self.kernel[...].astype(self.dtype)
        if stride > 1 or min(kernel.shape[2:]) < WIDE:
            return _convolve(x, kernel, stride)
        convolve = conv3x3 if self.deterministic else conv3x3_in_training

        def on_cpu(x: Array, kernel: Array) -> Array:
            return convolve(x.astype(jnp.float32), kernel.astype(jnp.float32)).astype(self.dtype)

        return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=_convolve)


def _convolve(x: Float[Array, "n H W c"], kernel: Float[Array, "3 3 c e"], stride: int = 1) -> Float[Array, "n h w e"]:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@jax.custom_vjp
def conv3x3_in_training(x: Float[Array, "n H W c"], kernel: Float[Array, "3 3 c e"]) -> Float[Array, "n H W e"]:
    """The convolution of stride 1 and its picture's gradient by Winograd's products; XLA finds the kernel's faster."""
    return conv3x3(x, kernel)


def _backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    (of_kernel,) = jax.linear_transpose(lambda kernel: _convolve(x, kernel), kernel)(gradient)
    return picture_gradient(kernel, gradient), of_kernel


conv3x3_in_training.defvjp(lambda x, kernel: (conv3x3(x, kernel), (x, kernel)), _backward)
