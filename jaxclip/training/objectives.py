"""What a model is trained for: from a model, a batch and a key to the loss."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxclip.models import clip
from jaxclip.preprocess import normalize
from jaxclip.training import losses
from jaxclip.training.state import Batch

_LOSSES = {"contrastive": losses.contrastive_loss, "sigmoid": losses.sigmoid_loss}


@dataclasses.dataclass(frozen=True)
class ImageText:
    """Images and texts that belong together (Radford et al. 2021; with ``sigmoid``, Zhai et al. 2023).

    Batches have ``images``, uint8 [n, H, W, 3], and ``tokens``, int [n, t].
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    loss: Literal["contrastive", "sigmoid"] = "contrastive"

    def __call__(self, model: clip.CLIP, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], dict]:
        """The loss, and the factor of the cosines."""
        images, _ = model.encode_image(normalize(batch["images"], self.mean, self.std))
        bias = None if model.logit_bias is None else model.logit_bias[...]
        log_scale = model.logit_scale[...]
        loss = _LOSSES[self.loss](images, model.encode_text(batch["tokens"]), log_scale, bias)
        return loss, {"logit_scale": jnp.exp(log_scale)}


@dataclasses.dataclass(frozen=True)
class Classes:
    """Labels of a linear head.

    Batches have ``images``, uint8 [n, H, W, 3], and ``labels``, int [n].

    Attributes:
        mean: Of the pixels.
        std: Of the pixels.
        smoothing: See :func:`~jaxclip.training.losses.cross_entropy`.
        unit: The head reads the representation scaled to length one, as a zero-shot head does. Without a bias this
            moves no prediction.
        mix: Mixup or CutMix of the batch, see :func:`~jaxclip.training.augment.make_mix`.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    smoothing: float = 0.0
    unit: bool = False
    mix: Callable[..., tuple[Array, Array]] | None = None

    def __call__(self, model: clip.Classifier, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], dict]:
        """The loss, and the share of pictures whose first choice is right (of the larger part, where mixed)."""
        images, targets = normalize(batch["images"], self.mean, self.std), batch["labels"]
        if self.mix is not None:
            images, targets = self.mix(key, images, jax.nn.one_hot(targets, model.head.out_features))
        h, _ = model.encode_image(images)
        with jax.default_matmul_precision("highest"):  # as in evaluation: the head is float32
            logits = model.head(losses.unit(h) if self.unit else h)
        right = jnp.argmax(logits, axis=1) == (targets if targets.ndim == 1 else jnp.argmax(targets, axis=1))
        return losses.cross_entropy(logits, targets, self.smoothing), {"accuracy": right.mean()}
