"""The ResNets' convolutions by other means are convolutions."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxclip import config
from jaxclip.models import clip, convolutions
from jaxclip.models.convolutions import Conv3x3, Pointwise, conv
from jaxclip.models.winograd import WIDE, conv3x3, picture_gradient

pytestmark = pytest.mark.usefixtures("float32_products")

BFLOAT16 = jnp.dtype("bfloat16")
FLOAT32 = jnp.dtype("float32")


def xla(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """The definition, in float32 at the highest precision."""
    half = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), [(half, half)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
    )


def relative(a: jax.Array, b: jax.Array) -> float:
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (7, 7), (14, 9), (16, 16)])
def test_winograd_is_the_convolution(height: int, width: int) -> None:
    """For even and odd sizes, square or not: a tile too few at the edge, or a transform transposed, would be seen."""
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(3, 1, (2, height, width, 17)), jnp.float32)
    kernel = jnp.asarray(random.normal(0, 1, (3, 3, 17, 5)), jnp.float32)
    assert relative(conv3x3(x, kernel), xla(x, kernel)) < 2e-6
    assert relative(conv3x3(x, jnp.roll(kernel, 1, axis=1)), xla(x, kernel)) > 0.1, "the comparison cannot fail"


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (7, 7), (8, 6)])
def test_winograds_gradient_is_the_convolutions(height: int, width: int) -> None:
    """For sizes as above: a kernel not turned, or one whose channels are exchanged, would be seen."""
    random = np.random.default_rng(0)
    x, kernel, gradient = (
        jnp.asarray(random.normal(size=shape), jnp.float32)
        for shape in ((2, height, width, 17), (3, 3, 17, 5), (2, height, width, 5))
    )
    of_x, _ = jax.vjp(xla, x, kernel)[1](gradient)
    assert relative(picture_gradient(kernel, gradient), of_x) < 2e-6


@pytest.mark.cpu
def test_training_takes_winograds_gradient() -> None:
    """Through the layer as training has it, with as many channels as they are for."""
    layer = conv(WIDE, WIDE + 1, 3, dtype=FLOAT32, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 6, WIDE)), jnp.float32)
    ours = jax.grad(lambda x, k: jnp.sin(convolutions.conv3x3_in_training(x, k)).sum(), (0, 1))(x, layer.kernel[...])
    theirs = jax.grad(lambda x, k: jnp.sin(xla(x, k)).sum(), (0, 1))(x, layer.kernel[...])
    assert all(0 < relative(a, b) < 2e-6 for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("size", "kind"), [(1, Pointwise), (3, Conv3x3), (7, nnx.Conv)])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_convolution_and_its_gradients(training: bool, size: int, kind: type[nnx.Conv], stride: int) -> None:
    """Of the picture and of the kernel, on a picture of odd height: a slice one too far, or the gradients of two of the
    kernel's pixels exchanged, would be seen.
    """
    layer = conv(6, 4, size, stride=stride, dtype=FLOAT32, rngs=nnx.Rngs(0))
    assert type(layer) is kind
    layer.train() if training else layer.eval()
    graph, state = nnx.split(layer)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 6, 6)), jnp.float32)

    def ours(x: jax.Array, state: nnx.State) -> jax.Array:
        return jnp.sum(jnp.sin(nnx.merge(graph, state)(x)))

    def theirs(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(xla(x, kernel, stride)))

    assert relative(layer(x), xla(x, layer.kernel[...], stride)) < 1e-6
    of_x, of_state = jax.jit(jax.grad(ours, (0, 1)))(x, state)
    of_x_theirs, of_kernel = jax.grad(theirs, (0, 1))(x, layer.kernel[...])
    assert relative(of_x, of_x_theirs) < 1e-6
    assert relative(of_state["kernel"][...], of_kernel) < 1e-6


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("channels", [32, WIDE])
def test_convolutions_in_bfloat16(channels: int, training: bool) -> None:
    """Inputs and results are rounded to bfloat16, sums are not; gradients too."""
    layer = conv(channels, channels, 3, dtype=BFLOAT16, rngs=nnx.Rngs(0))
    layer.train() if training else layer.eval()
    graph, state = nnx.split(layer)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, channels)), jnp.bfloat16)

    def ours(x: jax.Array, state: nnx.State) -> jax.Array:
        return jnp.sum(nnx.merge(graph, state)(x).astype(jnp.float32) ** 2)

    def widened(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return xla(x.astype(jnp.float32), kernel.astype(jnp.bfloat16).astype(jnp.float32))

    def exact(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(widened(x, kernel) ** 2)

    kernel = layer.kernel[...]
    assert layer(x).dtype == jnp.bfloat16
    assert relative(layer(x).astype(jnp.float32), widened(x, kernel)) < 2**-8
    of_x, of_state = jax.grad(ours, (0, 1))(x, state)
    of_x_exact, of_kernel = jax.grad(exact, (0, 1))(x, kernel)
    assert relative(of_x.astype(jnp.float32), of_x_exact.astype(jnp.float32)) < 2**-7
    assert relative(of_state["kernel"][...], of_kernel) < 2**-7


@pytest.mark.cpu
def test_what_computes_a_convolution_of_3x3() -> None:
    """Wide ones on a CPU take 16 matrix products, their picture's gradient as many; others, and kernels' gradients, are
    XLA's.
    """
    layer = conv(128, 128, 3, dtype=FLOAT32, rngs=nnx.Rngs(0))
    x = jnp.ones((1, 4, 4, 128))

    def program(of: Callable[[jax.Array], jax.Array], x: jax.Array = x) -> tuple[int, int]:
        text = jax.jit(of).lower(x).as_text()
        return text.count("stablehlo.dot_general"), text.count("stablehlo.convolution")

    assert program(layer.__call__) == (16, 0)
    narrow = conv(32, 128, 3, dtype=FLOAT32, rngs=nnx.Rngs(0))
    assert program(narrow.__call__, x[..., :32]) == (0, 1)
    assert program(conv(128, 128, 3, stride=2, dtype=FLOAT32, rngs=nnx.Rngs(0)).__call__) == (0, 1)
    assert program(conv(128, 128, 3, dtype=BFLOAT16, rngs=nnx.Rngs(0)).__call__) == (16, 0)
    layer.train()
    assert program(layer.__call__) == (16, 0)

    def gradients(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.grad(lambda x, kernel: jnp.sin(convolutions.conv3x3_in_training(x, kernel)).sum(), (0, 1))(x, kernel)

    assert program(gradients, layer.kernel[...]) == (32, 1)
    narrow.train()
    assert program(jax.grad(lambda x: jnp.sin(narrow(x)).sum()), x[..., :32]) == (0, 2)
    layer.eval()
    assert program(layer.__call__) == (16, 0)


@pytest.mark.cpu
@pytest.mark.parametrize(
    "vision",
    [config.ResNet(64, (1, 2, 1, 1), 64), config.CLIPResNet(64, (1, 1, 2, 1), 64, 32, 24)],
    ids=["v1.5", "clip"],
)
def test_towers_are_what_they_are_with_xlas_convolutions(
    vision: config.Vision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole tower and its stages, every number random, batch norms' moments too: to 1e-5."""
    graph, state = nnx.split(clip.abstract(config.ModelConfig("one", vision, config.Preprocess(64), num_classes=2)))
    random = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if leaf.ndim < 2:
            return jnp.asarray(random.uniform(0.5, 1.5, leaf.shape), jnp.float32)
        return jnp.asarray(random.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape), jnp.float32)

    state = jax.tree.map(draw, state)
    images = jnp.asarray(random.normal(size=(2, 64, 64, 3)), jnp.float32)

    def run() -> tuple[jax.Array, list[jax.Array]]:
        return jax.jit(lambda s, x: nnx.merge(graph, s).encode_image(x, (2, 4)))(state, images)

    h, kept = run()
    monkeypatch.setattr(Conv3x3, "__call__", nnx.Conv.__call__)
    plain, plain_kept = run()
    assert 0 < relative(h, plain) < 1e-5, "farther than rounding, or Winograd was not taken at all"
    for ours, theirs in zip(kept, plain_kept, strict=True):
        assert relative(ours, theirs) < 1e-5
