"""The towers: what they compute beside what their definition says, whatever the weights."""

import dataclasses
import functools
import itertools
import types
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxclip import config, model
from jaxclip.compiler import compiler_options
from jaxclip.errors import InputError
from jaxclip.models import clip, layers, transformer
from jaxclip.models.convolutions import conv
from jaxclip.models.layers import BatchNorm, LayerNorm, interpolate_positions, joined
from jaxclip.models.resnet import max_pool
from jaxclip.models.transformer import Transformer

pytestmark = pytest.mark.usefixtures("float32_products")

TINY = config.ViT(image_size=32, patch_size=8, width=48, layers=4, heads=3, mlp_width=96, output_dim=24)
TEXT = config.Text(16, 100, 32, 2, 2, 64, 24, eos_id=99)
PIXELS = config.Preprocess(32)


def randomized(abstract: nnx.Module, seed: int = 0) -> nnx.Module:
    """The module with random numbers in every array, so that no zero and no identity hides a mistake."""
    rng = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if leaf.ndim < 2:
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32)  # gains, biases, variances
        return jnp.asarray(rng.normal(0, np.prod(leaf.shape[-2:-1]) ** -0.5, leaf.shape), jnp.float32)

    graph, state = nnx.split(abstract)
    return nnx.merge(graph, jax.tree.map(draw, state))


def build(vision: config.Vision, dtype: str = "float32", **kwargs) -> nnx.Module:
    cfg = config.ModelConfig("tiny", vision, PIXELS, dataclasses.replace(TEXT, output_dim=vision.output_dim))
    return randomized(clip.abstract(cfg, dtype=jnp.dtype(dtype), **kwargs))


@nnx.jit(static_argnums=2)
def run(tower: nnx.Module, x: jax.Array, layers: tuple[int, ...] = ()) -> tuple[jax.Array, list[jax.Array]]:
    return tower(x, layers)


@nnx.jit
def pool(tower: nnx.Module, x: jax.Array) -> jax.Array:
    return tower.pool(x)


@nnx.jit
def words(tower: nnx.Module, tokens: jax.Array) -> jax.Array:
    return tower(tokens)


@pytest.fixture(scope="module")
def images() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (3, 32, 32, 3))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_scan_runs_every_block_once_and_in_order(training: bool) -> None:
    """The stack, unrolled or scanned, is the composition of its blocks; a wrong axis or order would differ."""
    options = {"activation": "gelu", "eps": 1e-5, "causal": True, "layer_scale": True, "dtype": jnp.dtype("float32")}
    depth = 4
    stack = randomized(nnx.eval_shape(lambda: Transformer(48, depth, 3, 96, remat=False, rngs=nnx.Rngs(0), **options)))
    stack.train() if training else stack.eval()
    x = jax.random.normal(jax.random.key(2), (2, 7, 48))
    graph, stacked = nnx.split(stack.blocks)
    outputs = [x]
    for i in range(depth):
        outputs.append(nnx.merge(graph, jax.tree.map(lambda leaf, i=i: leaf[i], stacked))(outputs[-1], 7))
    last, kept = stack(x, layers=(3, 1))
    np.testing.assert_allclose(last, outputs[depth], rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(kept[0], outputs[3], rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(kept[1], outputs[1], rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["training", "remat", "evaluation"])
@pytest.mark.parametrize(("causal", "token", "depth"), [(False, 0, 1), (False, 2, 2), (True, [6, 0, 3], 3)])
def test_one_token_is_that_of_all_and_so_are_its_gradients(
    causal: bool, token: int | list[int], depth: int, mode: str
) -> None:
    """The last block computes it alone, and every other block runs once: the oracle is the row of the whole output."""
    options = {"activation": "gelu", "eps": 1e-5, "causal": causal, "layer_scale": True, "dtype": jnp.dtype("float32")}
    remat = mode == "remat"
    stack = randomized(nnx.eval_shape(lambda: Transformer(48, depth, 3, 96, remat=remat, rngs=nnx.Rngs(0), **options)))
    stack.eval() if mode == "evaluation" else stack.train()
    graph, state = nnx.split(stack)
    x, weights = jax.random.normal(jax.random.key(2), (3, 7, 48)), jax.random.normal(jax.random.key(3), (3, 48))
    token = jnp.asarray(token) if causal else token

    def alone(state: nnx.State, x: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(x, token=token)[0]

    def kept(state: nnx.State, x: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(x, layers=(depth,), token=token)[0]

    def row(state: nnx.State, x: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(x)[0][jnp.arange(3), token]

    def value_and_gradients(function: Callable[..., jax.Array]) -> list[jax.Array]:
        def total(state: nnx.State, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            y = function(state, x)
            return jnp.sum(weights * y), y

        (_, y), gradients = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(state, x)
        return [y, *jax.tree.leaves(gradients)]

    assert jax.eval_shape(alone, state, x).shape == (3, 48)
    want = value_and_gradients(row)
    for function in (alone, kept):
        for a, b in zip(value_and_gradients(function), want, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("n", [2, 7, 12])
@pytest.mark.parametrize("vision", [TINY, config.ResNet(32, (1, 1), 8, block="basic")], ids=["vit", "resnet"])
def test_a_batch_is_encoded_as_its_pictures_alone(
    vision: config.Vision, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever parts a CPU takes it, with intermediate activations: none is left out and none changes its place."""
    monkeypatch.setattr(transformer, "TOKENS", 4 * (4 * 4 + 1))
    monkeypatch.setattr(model, "PICTURES", 4)
    one = model.Model(
        config.ModelConfig("tiny", vision, PIXELS, dataclasses.replace(TEXT, output_dim=vision.output_dim)),
        build(vision),
    )
    images = np.random.default_rng(1).normal(size=(n, 32, 32, 3)).astype(np.float32)
    h, kept = one.encode_image(images, (2, 1))
    alone = [one.encode_image(picture[None], (2, 1)) for picture in images]
    np.testing.assert_allclose(h, np.concatenate([h for h, _ in alone]), rtol=1e-4, atol=1e-4)
    for i in range(2):
        np.testing.assert_allclose(kept[i], np.concatenate([k[i] for _, k in alone]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n", [1, 5, 12])
def test_parts_of_a_batch(n: int) -> None:
    """Equal, at most as large as asked, as few as can be; put together they are the batch."""
    x = jnp.arange(3 * n).reshape(n, 3)
    parts = layers.apart(x, 4)
    assert parts.shape == {1: (1, 1, 3), 5: (5, 1, 3), 12: (3, 4, 3)}[n]
    np.testing.assert_array_equal(layers.together(parts), x)
    assert parts[0, -1, 0] == x[(parts.shape[1] - 1) * len(parts), 0], "a part is not every k-th"


@pytest.mark.parametrize("stride", [1, 2])
def test_a_1x1_convolution_is_one(stride: int) -> None:
    """Written as a matrix product, it must take the same positions and channels as XLA's convolution."""
    layer = conv(5, 7, 1, stride=stride, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(3), (2, 9, 8, 5))
    expected = jax.lax.conv_general_dilated(
        x, layer.kernel[...], (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_the_stem_for_small_pictures(images: jax.Array) -> None:
    """3x3 and of stride 1: the first stage sees twice as many rows and columns, behind the same pool."""
    vision = config.ResNet(32, (1, 1), 8)
    usual, small = build(vision).vision, build(dataclasses.replace(vision, stem="3x3")).vision
    assert run(usual, images, (1,))[1][0].shape[1:3] == (8, 8)
    assert run(small, images, (1,))[1][0].shape[1:3] == (16, 16)
    assert small.conv1.kernel.shape == (3, 3, 3, 8)


@pytest.mark.parametrize(("block", "width"), [("basic", 16), ("bottleneck", 64)])
def test_a_resnet_of_two_stages(images: jax.Array, block: str, width: int) -> None:
    """The representation has the last stage's width, which heads and stores are made for."""
    vision = config.ResNet(32, (1, 2), 8, block=block)
    h, (kept,) = run(build(vision).vision, images, (2,))
    assert vision.output_dim == h.shape[1] == kept.shape[-1] == width


@pytest.mark.parametrize(("height", "width"), [(1, 2), (6, 7), (9, 8)])
def test_the_pool_that_is_trained_is_the_pool(height: int, width: int) -> None:
    """Values, and the gradient where no two pixels of a window are equal."""
    x = jax.random.normal(jax.random.key(0), (2, height, width, 3))
    weights = jax.random.normal(jax.random.key(1), max_pool(x, training=False).shape)
    ours, theirs = (
        jax.value_and_grad(lambda x, training=training: (weights * max_pool(x, training)).sum())(x)
        for training in (True, False)
    )
    np.testing.assert_array_equal(max_pool(x, training=True), max_pool(x, training=False))
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-6)


def test_encoders_have_forward_mode_derivatives(images: jax.Array) -> None:
    """In evaluation: along a direction they agree with the gradient, which goes the other way."""
    for vision in (TINY, config.CLIPResNet(32, (1, 1, 1, 1), 8, 4, 24), config.ResNet(32, (1, 1), 8)):
        tower = build(vision).vision
        tangent = jax.random.normal(jax.random.key(5), images.shape)
        graph, state = nnx.split(tower)

        def encode(x: jax.Array, graph: nnx.GraphDef = graph, state: nnx.State = state) -> jax.Array:
            return nnx.merge(graph, state)(x)[0]

        h, forward = jax.jit(lambda x, t, encode=encode: jax.jvp(encode, (x,), (t,)))(images, tangent)
        weights = jax.random.normal(jax.random.key(6), h.shape)
        (backward,) = jax.jit(lambda x, w, encode=encode: jax.vjp(encode, x)[1](w))(images, weights)
        assert float((forward * weights).sum()) == pytest.approx(float((backward * tangent).sum()), rel=1e-3)


def test_layers_are_those_of_the_same_forward_pass(images: jax.Array) -> None:
    """The activations come in the order asked for, as often as asked for, and asking changes no output.

    A transformer block that was asked for twice came once, and then as zeros.
    """
    for vision in (TINY, config.CLIPResNet(32, (1, 1, 1, 1), 8, 4, 24), config.ResNet(32, (1, 1, 1, 1), 8)):
        tower = build(vision).vision
        plain, none = run(tower, images)
        asked, kept = run(tower, images, (4, 2, 4))
        assert len(none) == 0 and len(kept) == 3
        np.testing.assert_array_equal(kept[2], kept[0])
        np.testing.assert_allclose(asked, plain, rtol=1e-5, atol=1e-5)
        if isinstance(vision, config.ViT):
            np.testing.assert_allclose(pool(tower, kept[0][:, 0]) @ tower.projection[...], plain, rtol=1e-5, atol=1e-5)
        elif isinstance(vision, config.CLIPResNet):
            np.testing.assert_allclose(pool(tower, kept[0]), plain, rtol=1e-5, atol=1e-5)
        else:
            np.testing.assert_allclose(kept[0].mean((1, 2)), plain, rtol=1e-5, atol=1e-5)
        assert not np.allclose(kept[0].ravel()[:64], kept[1].ravel()[:64])


@pytest.mark.parametrize("layer", [0, 5, -1])
def test_a_layer_that_does_not_exist_is_named(layer: int, images: jax.Array) -> None:
    """Transformers gave zeros for it, and ResNets an IndexError or, for -1, their last."""
    for vision in (TINY, config.CLIPResNet(32, (1, 1, 1, 1), 8, 4, 24)):
        of_tiny = model.Model(config.ModelConfig("tiny", vision, PIXELS, TEXT), build(vision))
        traced = jax.jit(of_tiny.representation, static_argnums=2)
        for call in (
            lambda m=of_tiny: m.encode_image(images, (2, layer)),
            lambda m=of_tiny, f=traced: f(m.params, images, (layer,)),
        ):
            with pytest.raises(InputError, match=f"layer {layer} does not exist: tiny has layers 1 to 4"):
                call()


def test_input_of_other_types_is_taken_or_named(images: jax.Array) -> None:
    """Lists of crops, layers in an array, a type that does not exist: Python's own errors told nothing of them. And the
    bytes of numbers in another order are not taken for other numbers.
    """
    of_tiny = model.Model(config.ModelConfig("tiny", TINY, PIXELS, TEXT), build(TINY))
    size = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(build(TINY))))
    assert repr(of_tiny) == f"Model(tiny, {size:,} parameters, float32)"
    h, kept = of_tiny.encode_image(images, (1, 2))
    asked, also = of_tiny.encode_image([np.asarray(picture) for picture in images], np.array([1, 2]))
    np.testing.assert_array_equal(asked, h)
    np.testing.assert_array_equal(also[1], kept[1])
    tokens = np.array([[5, 7, 99, 0], [8, 99, 0, 0]])
    np.testing.assert_array_equal(of_tiny.encode_text(tokens.tolist()), of_tiny.encode_text(tokens))
    np.testing.assert_array_equal(of_tiny.encode_text(tokens.astype(">i4")), of_tiny.encode_text(tokens))
    np.testing.assert_array_equal(of_tiny.encode_image(np.asarray(images).astype(">f4")), of_tiny.encode_image(images))
    for call, says in (
        (lambda: of_tiny.encode_image(["a.jpg"]), "images have shape"),
        (lambda: of_tiny.encode_text(["a cat"]), "use model.tokenize"),
        (lambda: of_tiny.encode_text(tokens[:, :0]), "use model.tokenize"),
        (lambda: of_tiny.encode_text(np.array([[1, 2], [3, -1]])), "id -1 of sentence 1 is none of the "),
        (lambda: of_tiny.encode_text(jnp.array([[1, 2**20], [3, 4]])), "id 1048576 of sentence 0 is none of the "),
        (lambda: model.load_model("nowhere", dtype="brain16"), "dtype is 'brain16': choose"),
    ):
        with pytest.raises(InputError, match=says):
            call()


def test_rematerialisation_changes_no_value_and_no_gradient(images: jax.Array) -> None:
    """Remat trades memory for time and nothing else."""

    def loss(model: nnx.Module) -> jax.Array:
        return jnp.sum(jnp.square(model.encode_image(images)[0]))

    plain, remat = (jax.tree.leaves(nnx.jit(nnx.grad(loss))(build(TINY, remat=flag))) for flag in (False, True))
    assert len(plain) == len(remat) > 20
    for a, b in zip(plain, remat, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(a).max()) + 1e-12)


def test_gradients_keep_no_second_stack_of_parameters() -> None:
    """Of the pixels in evaluation, of the parameters with remat: its memory is why one trains with it."""
    vision = dataclasses.replace(TINY, width=192, heads=3, mlp_width=768, layers=12)
    images = jnp.zeros((1, 32, 32, 3))

    def temporary(remat: bool, argnum: int) -> int:
        module = build(vision, remat=remat)
        module.train() if remat else module.eval()
        graph, state = nnx.split(module)
        total = jax.grad(lambda s, x: nnx.merge(graph, s).encode_image(x)[0].sum(), argnum)
        return jax.jit(total).lower(state, images).compile().memory_analysis().temp_size_in_bytes

    stack = 12 * 12 * 192**2 * 4
    assert temporary(remat=False, argnum=1) < 0.5 * stack
    assert temporary(remat=True, argnum=0) < 0.5 * stack


@pytest.mark.parametrize(
    "vision",
    [TINY, dataclasses.replace(TINY, pool="average"), config.CLIPResNet(32, (1, 2, 1, 1), 16, 8, 24),
     config.ResNet(32, (1, 2, 1, 1), 16)],
    ids=["vit", "vit-average", "clip_resnet", "resnet"],
)  # fmt: skip
def test_bfloat16_is_near_float32(vision: config.Vision, images: jax.Array) -> None:
    """bfloat16 keeps float32 norms, softmax and sums: cosine with float32 of at least 0.999."""
    tokens = jax.random.randint(jax.random.key(3), (3, 16), 0, 100)
    single, half = build(vision), build(vision, "bfloat16")
    for a, b in (
        (run(single.vision, images)[0], run(half.vision, images.astype(jnp.bfloat16))[0]),
        (words(single.text, tokens), words(half.text, tokens)),
    ):
        assert b.dtype == jnp.bfloat16
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert cosine.min() > 0.999


def test_a_classifiers_logits_are_float32() -> None:
    """The zero-shot head that fine-tuning begins with has rows of length 100: bfloat16 would move its logits by 0.1."""
    cfg = dataclasses.replace(config.ModelConfig("tiny", TINY, PIXELS), num_classes=7)
    half = randomized(clip.abstract(cfg, dtype=jnp.dtype("bfloat16")))
    h = jax.random.normal(jax.random.key(0), (5, half.head.in_features))
    logits = half.head(h)
    assert logits.dtype == jnp.float32
    expected = np.asarray(h, np.float64) @ half.head.kernel[...] + half.head.bias[...]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_text_is_causal_and_reads_the_end_of_text_token() -> None:
    """What comes after the end-of-text token cannot matter; what comes before must."""
    tower = build(TINY).text
    tokens = jnp.array([[98, 5, 6, 7, 99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]])
    out = words(tower, tokens)
    np.testing.assert_array_equal(out, words(tower, tokens.at[0, 9].set(42)))
    assert not np.allclose(out, words(tower, tokens.at[0, 1].set(42)))


def test_position_interpolation_is_open_clips() -> None:
    """Anti-aliased bicubic in both directions, as torch's F.interpolate; and nothing at the native size."""
    torch = pytest.importorskip("torch")
    positions = np.random.default_rng(0).standard_normal((1 + 49, 12)).astype(np.float32)
    assert interpolate_positions(positions, (7, 7)) is positions
    for grid in ((12, 12), (5, 5), (9, 14)):
        square = torch.from_numpy(positions[1:]).reshape(1, 7, 7, 12).permute(0, 3, 1, 2)
        want = torch.nn.functional.interpolate(square, grid, mode="bicubic", antialias=True, align_corners=False)
        ours = interpolate_positions(jnp.asarray(positions), grid)
        np.testing.assert_array_equal(ours[0], positions[0])
        np.testing.assert_allclose(ours[1:], want[0].permute(1, 2, 0).reshape(-1, 12), rtol=2e-6, atol=2e-6)


def test_towers_take_another_resolution(images: jax.Array) -> None:
    """A larger picture runs through the same weights, and gives a representation of the same size."""
    large = jax.image.resize(images, (3, 64, 96, 3), "cubic")
    for vision in (TINY, config.CLIPResNet(32, (1, 1, 1, 1), 8, 4, 24), config.ResNet(32, (1, 1, 1, 1), 8)):
        tower = build(vision).vision
        h = run(tower, large)[0]
        assert h.shape == (3, clip.representation_size(vision)) and jnp.isfinite(h).all()


@pytest.mark.parametrize("tokens", [7, transformer.QUERIES, 2 * transformer.QUERIES + 3])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_and_its_gradients_are_jaxs(tokens: int, causal: bool) -> None:
    """A CPU takes the queries in blocks and divides late; both would be wrong at a block's edge or a large logit."""
    rng = np.random.default_rng(0)
    q, k, v, weights = (jnp.asarray(rng.normal(0, 4, (2, tokens, 3, 8)), jnp.float32) for _ in range(4))

    def total(attention: Callable[..., jax.Array], *inputs: jax.Array) -> jax.Array:
        return jnp.sum(weights * attention(*inputs))

    ours = functools.partial(transformer.attention, causal=causal, tokens=tokens)
    oracle = functools.partial(jax.nn.dot_product_attention, is_causal=causal)
    np.testing.assert_allclose(jax.jit(ours)(q, k, v), oracle(q, k, v), atol=3e-5)
    gradients = [jax.jit(jax.grad(functools.partial(total, a), (0, 1, 2)))(q, k, v) for a in (ours, oracle)]
    for a, b in zip(*gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=3e-4 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_one_query_and_its_gradients_are_jaxs(masked: bool) -> None:
    """Of projected keys and values, with biases of both: that of keys changes nothing."""
    rng = np.random.default_rng(0)
    n, t, heads, d, w = 3, 7, 2, 8, 12
    shapes = [(n, heads, d), (n, t, w), (w, heads * d), (w, heads * d), (heads * d,)]
    inputs = [jnp.asarray(rng.normal(0, 2, shape), jnp.float32) for shape in shapes]
    key_bias, weights = (jnp.asarray(rng.normal(0, 2, shape), jnp.float32) for shape in ((heads * d,), (n, heads * d)))
    seen = jnp.asarray(rng.random((n, t)) < 0.6).at[:, 2].set(True) if masked else None

    def oracle(query, x, key, value, value_bias):
        k, v = ((x @ m + b).reshape(n, t, heads, d) for m, b in ((key, key_bias), (value, value_bias)))
        mask = None if seen is None else seen[:, None, None]
        return jax.nn.dot_product_attention(query[:, None], k, v, mask=mask).reshape(n, -1)

    def ours(*inputs):
        return layers.attention_of_one(*inputs, seen)

    np.testing.assert_allclose(jax.jit(ours)(*inputs), jax.jit(oracle)(*inputs), rtol=1e-4, atol=1e-4)
    totals = [lambda *a, f=f: jnp.sum(weights * f(*a)) for f in (ours, oracle)]
    gradients = [jax.jit(jax.grad(total, range(5)))(*inputs) for total in totals]
    for a, b in zip(*gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("causal", [False, True])
def test_no_token_attends_to_padding(causal: bool) -> None:
    """On a GPU an odd number of tokens is padded in training: what stands there must not reach the others."""
    q, k, v = (jax.random.normal(key, (2, 8, 3, 8)) for key in jax.random.split(jax.random.key(0), 3))
    whole = transformer.attention(q[:, :7], k[:, :7], v[:, :7], causal, 7)
    padded = transformer.attention(q, 1e3 * k.at[:, :7].divide(1e3), v, causal, 7)
    np.testing.assert_allclose(padded[:, :7], whole, atol=1e-6)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("causal", "token"), [(False, 0), (True, None)])
def test_what_an_nvidia_gpu_computes_is_the_same(
    causal: bool, token: int | None, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There, queries, keys and values are products of their own, and odd numbers of tokens are padded for gradients, in
    training throughout. All that is missing here is cuDNN's attention, for which JAX's own stands.
    """
    options = {"activation": "gelu", "eps": 1e-5, "causal": causal, "layer_scale": False, "dtype": jnp.dtype("float32")}
    stack = randomized(nnx.eval_shape(lambda: Transformer(48, 3, 3, 96, remat=False, rngs=nnx.Rngs(0), **options)))
    stack.train() if training else stack.eval()
    graph, state = nnx.split(stack)
    x, weights = jax.random.normal(jax.random.key(2), (2, 2, 7, 48))
    jaxs, calls = jax.nn.dot_product_attention, []

    def attention(*args: jax.Array, implementation: str | None, **kwargs) -> jax.Array:
        calls.append((args[0].shape[1], implementation))
        return jaxs(*args, **kwargs)

    def total(state: nnx.State, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, kept = nnx.merge(graph, state)(x, layers=(2,), token=token)
        return jnp.sum(weights * ((y if token is None else y[:, None]) + kept[0])), y

    def gradients() -> list[jax.Array]:
        return jax.tree.leaves(jax.jit(lambda *of: jax.value_and_grad(total, (0, 1), has_aux=True)(*of))(state, x))

    want = gradients()
    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    monkeypatch.setattr(transformer, "has_flash_attention", lambda dtype, width: True)
    monkeypatch.setattr(
        jax.lax, "platform_dependent", lambda *args, default, cpu=None, cuda=None: (cuda or default)(*args)
    )
    found = gradients()
    assert (8, "cudnn") in calls, "the gradient of an odd number of tokens, which JAX refuses"
    calls.clear()
    jax.eval_shape(total, state, x)
    assert set(calls) == {(8 if training else 7, "cudnn")}
    for a, b in zip(found, want, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max()))


def test_which_device_has_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVIDIA's from Ampere on, in two bytes and with heads that cuDNN takes; elsewhere JAX's own is used."""

    def has(capability: str, dtype: str = "bfloat16", width: int = 64) -> bool:
        device = types.SimpleNamespace(compute_capability=capability)
        monkeypatch.setattr(jax, "local_devices", lambda: [device])
        return transformer.has_flash_attention(jnp.dtype(dtype), width)

    assert has("8.0") and has("9.0") and has("12.0", "float16", 128)
    assert not (has("7.5") or has("gfx90a") or has("9.0", "float32") or has("9.0", width=60) or has("9.0", width=136))
    monkeypatch.undo()
    assert not transformer.has_flash_attention(jnp.dtype("bfloat16"), 64) or jax.default_backend() == "gpu"


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "quick_gelu"])
def test_activations_are_pytorchs(name: str) -> None:
    """Over the whole range, slopes too; bfloat16 differs by its own rounding of the result alone; on a
    GPU by that of each step, too.
    """
    torch = pytest.importorskip("torch")
    gelu = torch.nn.functional.gelu
    oracles = {
        "gelu": gelu,
        "gelu_tanh": functools.partial(gelu, approximate="tanh"),
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    }
    x = torch.linspace(-12, 12, 10001, requires_grad=True)
    y = oracles[name](x)
    y.sum().backward()
    ours = jnp.asarray(x.detach().numpy())
    np.testing.assert_allclose(layers.activate(name, ours), y.detach().numpy(), rtol=1e-6, atol=2e-6)
    slopes = jax.grad(lambda x: layers.activate(name, x).sum())(ours)
    np.testing.assert_allclose(slopes, x.grad.numpy(), rtol=1e-5, atol=5e-6)
    half = ours.astype(jnp.bfloat16)
    rounded = layers.activate(name, half.astype(jnp.float32)).astype(jnp.bfloat16)
    allowed = 0 if jax.default_backend() == "cpu" else 2**-6
    found, want = (a.astype(jnp.float32) for a in (layers.activate(name, half), rounded))
    np.testing.assert_allclose(found, want, rtol=allowed, atol=allowed)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "quick_gelu"])
def test_cublas_gets_gelus_in_the_form_that_it_has(name: str) -> None:
    """As lowered for NVIDIA: in bfloat16 GELUs are the tanh form, all in bfloat16, which XLA knows; nothing else is."""

    def lowered(dtype: str, platform: str) -> str:
        traced = jax.jit(functools.partial(layers.activate, name)).trace(jax.ShapeDtypeStruct((8,), dtype))
        return traced.lower(lowering_platforms=(platform,)).as_text()

    within = name != "quick_gelu"
    text = lowered("bfloat16", "cuda")
    assert ("tanh" in text and "f32" not in text.replace("bf16", "")) == within, text
    for dtype, platform in (("float32", "cuda"), ("bfloat16", "cpu")):
        assert "f32" in lowered(dtype, platform), (dtype, platform)
        assert ("erf" in lowered(dtype, platform)) == (name == "gelu"), (dtype, platform)


def test_the_two_forms_of_gelu() -> None:
    """No further apart than ``activate`` says, in value; in slope 1e-3."""
    x = jnp.linspace(-12, 12, 100_001)
    value, slope = layers.ACTIVATIONS["gelu"]
    value_tanh, slope_tanh = layers.ACTIVATIONS["gelu_tanh"]
    assert 4e-4 < jnp.abs(value(x) - value_tanh(x)).max() < 5e-4
    assert 8e-4 < jnp.abs(slope(x) - slope_tanh(x)).max() < 1e-3


def test_batch_norm_is_pytorchs_in_training_and_evaluation() -> None:
    """Output, all three gradients, and both running statistics (the variance is the unbiased one)."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 5, 6, 3)).astype(np.float32) * 3 + 100  # far from zero: E[x²] − E[x]² would fail
    reference = torch.nn.BatchNorm2d(3)
    ours = BatchNorm(3, dtype=jnp.dtype("float32"))
    for name, target in (("weight", ours.scale), ("bias", ours.bias), ("running_mean", ours.mean),
                         ("running_var", ours.var)):  # fmt: skip
        value = rng.uniform(0.5, 2, 3).astype(np.float32)
        getattr(reference, name).data = torch.from_numpy(value)
        target[...] = jnp.asarray(value)
    pixels = torch.from_numpy(x.transpose(0, 3, 1, 2))
    reference.eval()
    np.testing.assert_allclose(ours(x), reference(pixels).detach().permute(0, 2, 3, 1), rtol=1e-5, atol=1e-4)
    reference.train()
    ours.train()
    pixels.requires_grad_()
    expected = reference(pixels)
    np.testing.assert_allclose(ours(x), expected.detach().permute(0, 2, 3, 1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours.mean[...], reference.running_mean, rtol=1e-6)
    np.testing.assert_allclose(ours.var[...], reference.running_var, rtol=1e-5)
    expected.sin().sum().backward()

    def value(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        return jnp.sin(layers.batch_normalized(1e-5, x, scale, bias)[0]).sum()

    of_x, of_scale, of_bias = jax.grad(value, (0, 1, 2))(x, ours.scale[...], ours.bias[...])
    np.testing.assert_allclose(of_x, pixels.grad.permute(0, 2, 3, 1), atol=1e-4)
    np.testing.assert_allclose(of_scale, reference.weight.grad, atol=1e-3)
    np.testing.assert_allclose(of_bias, reference.bias.grad, atol=1e-3)


def test_layer_norm_is_pytorchs_in_training_and_evaluation() -> None:
    """Output and all three gradients, of rows far from zero; in bfloat16 it is float32's, rounded."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((4, 5, 24)) * 3 + 20).astype(np.float32)
    reference, ours = (
        torch.nn.LayerNorm(24, eps=1e-3),
        LayerNorm(24, eps=1e-3, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0)),
    )
    for name, target in (("weight", ours.scale), ("bias", ours.bias)):
        value = rng.uniform(0.5, 2, 24).astype(np.float32)
        getattr(reference, name).data = torch.from_numpy(value)
        target[...] = jnp.asarray(value)
    rows = torch.from_numpy(x).requires_grad_()
    expected = reference(rows)
    expected.sin().sum().backward()
    half = LayerNorm(24, eps=1e-3, dtype=jnp.dtype("bfloat16"), rngs=nnx.Rngs(0))
    nnx.update(half, nnx.state(ours))
    rounded = x.astype(jnp.bfloat16)
    for mode in ("eval", "train"):
        getattr(ours, mode)()
        getattr(half, mode)()
        graph, params = nnx.split(ours)
        np.testing.assert_allclose(ours(x), expected.detach(), atol=1e-5)
        total = jax.grad(lambda x, p, g=graph: jnp.sin(nnx.merge(g, p)(x)).sum(), (0, 1))
        of_x, of_params = jax.jit(total)(x, params)
        np.testing.assert_allclose(of_x, rows.grad, atol=1e-5)
        np.testing.assert_allclose(of_params["scale"][...], reference.weight.grad, atol=1e-4)
        np.testing.assert_allclose(of_params["bias"][...], reference.bias.grad, atol=1e-4)
        assert half(rounded).dtype == jnp.bfloat16
        np.testing.assert_allclose(half(rounded), ours(rounded.astype(np.float32)), rtol=2**-7, atol=2**-7)


def test_a_join_is_the_relu_of_a_sum() -> None:
    """Its gradient at 0 is 0, as ReLU's (blocks end in many zeros); what is not a number stays so."""

    def relu(a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.nn.relu(a + b)

    values = np.array([-2.0, -0.0, 0.0, 1e-30, 3.0, np.inf], np.float32)
    a, b = (jnp.asarray(x.reshape(-1, 1, 1, 1)) for x in np.meshgrid(values, values))
    for rows in (True, False):
        join = functools.partial(joined, rows=rows)
        np.testing.assert_array_equal(join(a, b), relu(a, b))
        assert jnp.isnan(join(a * jnp.nan, b)).all()
        for argument in (0, 1):
            ours, theirs = (jax.grad(lambda *x, f=f: f(*x).sum(), argument)(a, b) for f in (join, relu))
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("of", "training"), [("ViT", True), *itertools.product(("basic", "bottleneck", "CLIP"), (True, False))]
)
def test_each_block_costs_what_the_one_before_did(of: str, training: bool) -> None:
    """What a compiled block reads and writes does not grow with its depth: XLA's CPU backend would else compute sums of
    a residual stream anew for each of their readers, from those of all blocks before.
    """

    def traffic(depth: int) -> float:
        vision = {
            "ViT": dataclasses.replace(TINY, layers=depth),
            "basic": config.ResNet(32, (depth,), 16, block="basic"),
            "bottleneck": config.ResNet(32, (depth,), 16),
            "CLIP": config.CLIPResNet(32, (depth, 1, 1, 1), 16, 32, 24),
        }[of]
        tower = build(vision)
        tower.train() if training else tower.eval()
        graph, state = nnx.split(tower)

        def run(state: nnx.State, x: jax.Array) -> jax.Array:
            return nnx.merge(graph, state).encode_image(x)[0].sum()

        program = jax.grad(run) if training else run
        options = compiler_options(ynnpack_products=training)
        compiled = jax.jit(program).lower(state, jnp.zeros((8, 32, 32, 3))).compile(options)
        return compiled.cost_analysis()["bytes accessed"]

    third, fourth = (b - a for a, b in itertools.pairwise(traffic(depth) for depth in (2, 3, 4)))
    assert 0 < fourth < 1.05 * third


def test_one_block_is_compiled_whatever_the_depth() -> None:
    """The scan is what keeps compile time flat: the program of 24 layers is as long as that of 2."""

    def length(layers: int) -> int:
        graph, state = nnx.split(build(dataclasses.replace(TINY, layers=layers)))
        run = jax.jit(lambda s, x: nnx.merge(graph, s).encode_image(x)[0])
        return run.lower(state, jnp.zeros((1, 32, 32, 3))).as_text().count("\n")

    assert length(24) == length(2)


def test_a_deleted_model_gives_its_memory_back_at_once() -> None:
    """A model in a reference cycle would stay until the garbage collector comes, and two large ones not fit at once."""
    import gc
    import weakref

    from jaxclip.model import Model

    model = Model(config.ModelConfig("tiny", TINY, PIXELS, TEXT), build(TINY))
    model.encode_image(np.zeros((2, 32, 32, 3), np.uint8))
    gone = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()
