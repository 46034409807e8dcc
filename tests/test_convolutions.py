"""The ResNets' convolutions by other means are convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxclip import config
from jaxclip.models import clip
from jaxclip.models.resnet import Pointwise, conv
from jaxclip.models.winograd import Winograd, conv3x3

FLOAT32 = jnp.dtype("float32")


def xla(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """The definition, in float64 arithmetic where JAX has it, else at the highest precision."""
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


@pytest.mark.parametrize("stride", [1, 2])
def test_pointwise_is_the_convolution(stride: int) -> None:
    """With its gradients."""
    layer = conv(6, 4, 1, stride=stride, dtype=FLOAT32, rngs=nnx.Rngs(0))
    assert isinstance(layer, Pointwise)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 6, 6)), jnp.float32)
    kernel = layer.kernel[...]
    assert relative(layer(x), xla(x, kernel, stride)) < 1e-6
    ours = jax.grad(lambda x: jnp.sum(jnp.sin(layer(x))))(x)
    assert relative(ours, jax.grad(lambda x: jnp.sum(jnp.sin(xla(x, kernel, stride))))(x)) < 1e-6


def test_winograd_is_for_evaluation_alone() -> None:
    """Training takes XLA's convolution and its gradients; evaluation on a CPU takes 16 matrix products."""
    layer = conv(128, 128, 3, dtype=FLOAT32, rngs=nnx.Rngs(0))
    assert isinstance(layer, Winograd)
    for other in (conv(64, 128, 3, dtype=FLOAT32, rngs=nnx.Rngs(0)),
                  conv(128, 128, 3, stride=2, dtype=FLOAT32, rngs=nnx.Rngs(0)),
                  conv(128, 128, 3, dtype=jnp.dtype("bfloat16"), rngs=nnx.Rngs(0))):  # fmt: skip
        assert not isinstance(other, Winograd)
    x = jnp.ones((1, 4, 4, 128))

    def program() -> str:
        return jax.jit(layer.__call__).lower(x).as_text()

    assert program().count("dot_general") == 16 and "convolution" not in program()
    layer.train()
    assert "dot_general" not in program() and program().count("stablehlo.convolution") == 1
    layer.eval()
    assert "convolution" not in program()


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
    monkeypatch.setattr(Winograd, "__call__", nnx.Conv.__call__)
    plain, plain_kept = run()
    assert 0 < relative(h, plain) < 1e-5, "farther than rounding, or Winograd was not taken at all"
    for ours, theirs in zip(kept, plain_kept, strict=True):
        assert relative(ours, theirs) < 1e-5
