"""The two whole models: CLIP (two towers and a temperature) and the classifier (one tower and a linear head)."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxclip import config
from jaxclip.models.clip_resnet import CLIPResNet
from jaxclip.models.layers import Linear
from jaxclip.models.resnet import ResNet
from jaxclip.models.text import Text
from jaxclip.models.vit import ViT


class CLIP(nnx.Module):
    """``vision`` and ``text`` share one space; ``logit_scale`` is the log of the inverse temperature."""

    def __init__(self, cfg: config.ModelConfig, *, dtype: jnp.dtype, remat: bool, rngs: nnx.Rngs):
        assert cfg.text is not None
        self.vision = _tower(cfg.vision, dtype=dtype, remat=remat, rngs=rngs)
        self.text = Text(cfg.text, dtype=dtype, remat=remat, rngs=rngs)
        # As training starts: Radford et al. 2021, section 2.5; Zhai et al. 2023 (SigLIP), section 3.2.
        self.logit_scale = nnx.Param(jnp.asarray(np.log(1 / 0.07), jnp.float32))
        self.logit_bias = nnx.Param(jnp.asarray(-10.0)) if cfg.logit_bias else None

    def encode_image(
        self, images: Float[Array, "n H W 3"], layers: Sequence[int] = ()
    ) -> tuple[Float[Array, "n d"], Sequence[Array]]:
        """The projected image embedding, not normalised, and the activations of ``layers``."""
        return self.vision(images, layers)

    def encode_text(self, tokens: Int[Array, "n t"]) -> Float[Array, "n d"]:
        """The projected text embedding, not normalised."""
        return self.text(tokens)


class Classifier(nnx.Module):
    """``head(vision(x))``: the representation is what the linear head reads."""

    def __init__(self, cfg: config.ModelConfig, *, dtype: jnp.dtype, remat: bool, rngs: nnx.Rngs):
        assert cfg.num_classes is not None
        self.vision = _tower(cfg.vision, dtype=dtype, remat=remat, rngs=rngs)
        self.head = Linear(representation_size(cfg.vision), cfg.num_classes, dtype=jnp.dtype("float32"), rngs=rngs)

    def encode_image(
        self, images: Float[Array, "n H W 3"], layers: Sequence[int] = ()
    ) -> tuple[Float[Array, "n d"], Sequence[Array]]:
        """The penultimate representation, and the activations of ``layers``."""
        return self.vision(images, layers)


def representation_size(vision: config.Vision) -> int:
    """The number of features d of h(x)."""
    return vision.output_dim or vision.width


def build(
    cfg: config.ModelConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype = jnp.dtype("float32"), remat: bool = False
) -> CLIP | Classifier:
    """A freshly initialised model.

    Args:
        cfg: What to build: a CLIP when it has a text tower, else a classifier.
        rngs: Random keys for the initialisation.
        dtype: The type of the computation. Parameters are float32; with bfloat16, norms, softmax, accumulation
            and a classifier's head stay in float32.
        remat: Recompute each transformer block in the backward pass rather than keep its activations.
    """
    return (CLIP if cfg.text is not None else Classifier)(cfg, dtype=jnp.dtype(dtype), remat=remat, rngs=rngs)


def abstract(
    cfg: config.ModelConfig, *, dtype: jnp.dtype = jnp.dtype("float32"), remat: bool = False
) -> CLIP | Classifier:
    """The model with shapes in place of parameters: what conversion fills and a checkpoint is restored into."""
    return nnx.eval_shape(lambda: build(cfg, rngs=nnx.Rngs(0), dtype=dtype, remat=remat))


def _tower(vision: config.Vision, *, dtype: jnp.dtype, remat: bool, rngs: nnx.Rngs) -> ViT | CLIPResNet | ResNet:
    match vision:
        case config.ViT():
            return ViT(vision, dtype=dtype, remat=remat, rngs=rngs)
        case config.CLIPResNet():
            return CLIPResNet(vision, dtype=dtype, rngs=rngs)
        case config.ResNet():
            return ResNet(vision, dtype=dtype, rngs=rngs)
