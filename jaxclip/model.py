"""A checkpoint, ready to use: encode images and text, preprocess pictures, tokenize sentences."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image

from jaxclip import checkpoint
from jaxclip.compiler import compiler_options
from jaxclip.config import ModelConfig, Text
from jaxclip.errors import InputError
from jaxclip.models import clip
from jaxclip.models.layers import apart, each_part, together
from jaxclip.models.vit import ViT
from jaxclip.preprocess import normalize, preprocess

Images = (
    UInt8[Array | np.ndarray, "n H W 3"] | Float[Array | np.ndarray, "n H W 3"] | Sequence[UInt8[np.ndarray, "H W 3"]]
)

PICTURES = 16
"""What a ResNet takes at once on a CPU, at the most (``benchmarks/NOTES.md``)."""


class Model:
    """A CLIP or a classifier with its parameters, jitted.

    Attributes:
        config: The checkpoint's :class:`~jaxclip.config.ModelConfig`.
        dtype: The type of the computation.
        params: The parameters, an nnx state: pass it to :meth:`representation` in code that jits or shards itself.
        representation: ``(params, uint8 or normalised images [n, H, W, 3], layers=()) -> (h [n, d], activations)``, the
            pure function behind :meth:`encode_image`: trace it, shard it, differentiate it.
        preprocess: Picture → uint8 crop [H, W, 3], as this checkpoint's training did it.
        tokenize: Strings → token ids [n, context length] (CLIPs only).
    """

    def __init__(self, config: ModelConfig, module: clip.CLIP | clip.Classifier):
        self.config = config
        self._graph, self.params = nnx.split(module)
        self.dtype = module.vision.dtype
        # Functions of the parameters alone, not of self: a model that is deleted gives its memory back at once.
        self.representation = functools.partial(_representation, self._graph, config, self.dtype)
        options = compiler_options(ynnpack_products=self.dtype == jnp.bfloat16)
        self._encode_image = jax.jit(self.representation, static_argnums=2, compiler_options=options)
        self._encode_text = jax.jit(functools.partial(_text, self._graph, self.dtype), compiler_options=options)

    def __repr__(self) -> str:
        size = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return f"Model({self.config.name}, {size:,} parameters, {self.dtype})"

    @overload
    def encode_image(self, images: Images) -> Float[Array, "n d"]: ...

    @overload
    def encode_image(self, images: Images, layers: Sequence[int]) -> tuple[Float[Array, "n d"], list[Array]]: ...

    def encode_image(
        self, images: Images, layers: Sequence[int] = ()
    ) -> Float[Array, "n d"] | tuple[Float[Array, "n d"], list[Array]]:
        """The representations h(x), float32: for a CLIP the projected embedding (not normalised), for a classifier the
        penultimate activations.

        Args:
            images: Preprocessed pictures, an array or a list of crops: uint8 pixels, normalised on the device;
                or floats, which are taken as normalised already (as the reference's own transform gives them, but
                channels last).
            layers: Intermediate activations wanted beside: transformer blocks (all tokens [n, t, w]) or ResNet stages
                (feature maps [n, h, w, c]), counted from 1.

        Returns:
            h [n, d]; with ``layers``, the pair of h and the list of activations.

        Raises:
            InputError: ``images`` has another shape or type, or a layer does not exist.

        """  # noqa: D205
        images, layers = _array(images), tuple(layers)
        if images.ndim != 4 or images.shape[-1] != 3 or not len(images):
            raise InputError(f"images have shape {images.shape}, not [n, height, width, 3] of at least one")
        if not (images.dtype == np.uint8 or jnp.issubdtype(images.dtype, jnp.floating)):
            raise InputError(f"images are {images.dtype}: pass uint8 pixels, or floats that are normalised already")
        self._check_size(images.shape[1], images.shape[2])
        h, kept = _outermost(self._encode_image, self.params, images, layers)
        return (h, kept) if layers else h

    def encode_text(self, tokens: Int[Array | np.ndarray, "n t"]) -> Float[Array, "n d"]:
        """The projected text embeddings, float32, not normalised.

        Args:
            tokens: Token ids as :attr:`tokenize` gives them.

        Raises:
            InputError: The model has no text tower, or ``tokens`` is no matrix of integers of its context length and
                its vocabulary (ids that are traced, or on another host, are not looked at).
        """
        text = self._text_config()
        tokens = _array(tokens)
        integers = jnp.issubdtype(tokens.dtype, jnp.integer)
        if tokens.ndim != 2 or 0 in tokens.shape or not integers or tokens.shape[1] > text.context_length:
            raise InputError(
                f"tokens are {tokens.dtype} {tokens.shape}, not integers [n, {text.context_length}]: use model.tokenize"
            )
        if not isinstance(tokens, jax.core.Tracer) and getattr(tokens, "is_fully_addressable", True):
            ids = np.asarray(tokens)
            if len(strange := np.argwhere((ids < 0) | (ids >= text.vocab_size))):
                raise InputError(
                    f"token id {ids[tuple(strange[0])]} of sentence {strange[0][0]} is none of the "
                    f"{text.vocab_size:,} of {self.config.name}: use model.tokenize"
                )
        return _outermost(self._encode_text, self.params, tokens)

    @property
    def head(self) -> tuple[Float[Array, "c d"], Float[Array, " c"]] | None:
        """The linear head (W, b) of a classifier, None for a CLIP (see :func:`jaxclip.zero_shot_head`)."""
        if self.config.num_classes is None:
            return None
        module = nnx.merge(self._graph, self.params)
        assert isinstance(module, clip.Classifier) and module.head.bias is not None
        return module.head.kernel[...].T, module.head.bias[...]

    @property
    def logit_scale(self) -> Float[Array, ""] | None:
        """The factor that a CLIP multiplies cosines by, None for a classifier."""
        if self.config.text is None:
            return None
        module = nnx.merge(self._graph, self.params)
        assert isinstance(module, clip.CLIP)
        return jnp.exp(module.logit_scale[...])

    def preprocess(self, image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
        """The uint8 crop that :meth:`encode_image` takes."""
        return preprocess(image, self.config.preprocess)

    @functools.cached_property
    def tokenize(self) -> Callable[[str | Sequence[str]], Int[np.ndarray, "n t"]]:
        """Sentences → padded token ids.

        Raises:
            InputError: The model has no text tower.
        """
        from jaxclip.tokenizer import load_tokenizer

        return load_tokenizer(self._text_config().context_length)

    def _text_config(self) -> Text:
        if self.config.text is None:
            raise InputError(f"{self.config.name} is a classifier: it has no text tower")
        return self.config.text

    def _check_size(self, height: int, width: int) -> None:
        multiple = getattr(self.config.vision, "patch_size", 32)
        if height % multiple or width % multiple:
            raise InputError(
                f"images are {height}x{width} pixels, not multiples of {multiple}: "
                f"model.preprocess gives {self.config.preprocess.size}x{self.config.preprocess.size}"
            )


def _array(x: Any) -> Array | np.ndarray:
    """``x`` itself where it is an array of JAX (traced ones among them) or numpy; else what numpy makes of it.

    In the processor's byte order, as ``jit`` takes the bytes of another for that.
    """
    x = x if isinstance(x, jax.Array | np.ndarray) else np.asarray(x)
    return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))


def _outermost(compiled: Any, params: nnx.State, inputs: Array | np.ndarray, *static: Any) -> Any:
    """Calls what was jitted with compiler's options, which only the outermost jit may have: not one that is traced."""
    if isinstance(inputs, jax.core.Tracer):
        return jax.jit(compiled.__wrapped__, static_argnums=range(2, 2 + len(static)))(params, inputs, *static)
    with jax.core.eval_context():
        return compiled(params, inputs, *static)


def _representation(
    graph: nnx.GraphDef,
    config: ModelConfig,
    dtype: jnp.dtype,
    params: nnx.State,
    images: Array,
    layers: tuple[int, ...] = (),
) -> tuple[Float[Array, "n d"], list[Array]]:
    module = nnx.merge(graph, params)
    pixels, depth = config.preprocess, config.vision.layers
    depth = depth if isinstance(depth, int) else len(depth)
    for layer in layers:
        if not 1 <= layer <= depth:
            raise InputError(f"layer {layer} does not exist: {config.name} has layers 1 to {depth}")

    def encode(images: Array) -> tuple[Array, list[Array]]:
        with _precision(dtype):
            if images.dtype == jnp.uint8:
                images = normalize(images, pixels.mean, pixels.std)
            h, kept = module.encode_image(images.astype(dtype), layers)
        return h.astype(jnp.float32), [a.astype(jnp.float32) for a in kept]

    def in_parts(images: Array) -> tuple[Array, list[Array]]:
        return jax.tree.map(together, each_part(encode, apart(images, PICTURES)))

    if isinstance(module.vision, ViT):  # which takes its blocks in parts
        return encode(images)
    return jax.lax.platform_dependent(images, cpu=in_parts, default=encode)


def _text(graph: nnx.GraphDef, dtype: jnp.dtype, params: nnx.State, tokens: Array) -> Float[Array, "n d"]:
    with _precision(dtype):
        module = nnx.merge(graph, params)
        assert isinstance(module, clip.CLIP)
        return module.encode_text(tokens).astype(jnp.float32)


def _precision(dtype: jnp.dtype):
    # Left alone, a TPU multiplies float32 matrices in bfloat16 and an Ampere GPU in TF32.
    return jax.default_matmul_precision("highest" if dtype == jnp.float32 else None)


def load_model(
    path: str | os.PathLike,
    *,
    dtype: str | jnp.dtype = "float32",
    sharding: jax.sharding.Sharding | Mapping[str, jax.sharding.NamedSharding] | None = None,
) -> Model:
    """Loads a checkpoint folder that ``jaxclip convert`` or training wrote; needs neither torch nor the source.

    Args:
        path: The folder.
        dtype: ``float32`` (true float32 on every device) or ``bfloat16`` (with float32 norms, softmax, accumulation).
        sharding: Where the parameters go; the first device by default.

    Raises:
        InputError: ``path`` is no such folder, or ``dtype`` is another.
    """
    try:
        known = str(jnp.dtype(dtype)) in ("float32", "bfloat16")
    except TypeError:  # of no type that numpy knows
        known = False
    if not known:
        raise InputError(f"dtype is {dtype!r}: choose float32 or bfloat16")
    return Model(*checkpoint.restore(path, dtype=jnp.dtype(dtype), sharding=sharding))
