"""The losses: contrastive and sigmoid between images and texts, cross-entropy for classes. Arrays in, a number out.

Under ``jit`` the arrays are global: a batch that is sharded over devices is compared whole, as open_clip's losses do
with their gather (``--gather-with-grad``), and the compiler puts the communication in.
"""

import math

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

MAX_LOG_SCALE = math.log(100)


def unit(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Rows of length one, float32; zero stays zero (``torch.nn.functional.normalize``)."""
    x = x.astype(jnp.float32)
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def clip_log_scale(log_scale: Float[Array, ""]) -> Float[Array, ""]:
    """What the logit scale's logarithm is set to after a step: between 0 and log 100 (Radford et al. 2021, 2.5)."""
    return jnp.clip(log_scale, 0, MAX_LOG_SCALE)


def contrastive_loss(
    images: Float[Array, "n d"],
    texts: Float[Array, "n d"],
    log_scale: Float[Array, ""],
    bias: Float[Array, ""] | None = None,
) -> Float[Array, ""]:
    """The mean of two cross-entropies: which text is the image's, which image is the text's (open_clip's ``ClipLoss``).

    Args:
        images: Embeddings, which are scaled to length one here.
        texts: Row i belongs to image i.
        log_scale: Logarithm of the factor of the cosines.
        bias: Added to the logits; it changes nothing here.
    """
    logits = _logits(images, texts, log_scale, bias)
    own = jnp.diagonal(logits)
    return (jax.nn.logsumexp(logits, axis=0) + jax.nn.logsumexp(logits, axis=1) - 2 * own).mean() / 2


def sigmoid_loss(
    images: Float[Array, "n d"],
    texts: Float[Array, "n d"],
    log_scale: Float[Array, ""],
    bias: Float[Array, ""] | None = None,
) -> Float[Array, ""]:
    """Every pair is a yes-or-no question; the sum over texts, mean over images (SigLIP, Zhai et al. 2023).

    Args:
        images: Embeddings, which are scaled to length one here.
        texts: Row i belongs to image i.
        log_scale: Logarithm of the factor of the cosines.
        bias: Added to the logits: a pair is seldom a match.
    """
    logits = _logits(images, texts, log_scale, bias)
    sign = 2 * jnp.eye(len(images)) - 1
    return -jax.nn.log_sigmoid(sign * logits).sum(axis=1).mean()


def cross_entropy(
    logits: Float[Array, "n c"], targets: Int[Array, " n"] | Float[Array, "n c"], smoothing: float = 0.0
) -> Float[Array, ""]:
    """The mean softmax cross-entropy, as ``torch.nn.CrossEntropyLoss(label_smoothing=…)``.

    Args:
        logits: One row for each picture.
        targets: Classes, or a distribution over them (mixup).
        smoothing: The share of every target that is spread over all classes (Szegedy et al. 2016).
    """
    logits = logits.astype(jnp.float32)
    if targets.ndim == 1:
        targets = jax.nn.one_hot(targets, logits.shape[-1])
    return optax.losses.softmax_cross_entropy(logits, optax.losses.smooth_labels(targets, smoothing)).mean()


def _logits(
    images: Float[Array, "n d"], texts: Float[Array, "n d"], log_scale: Float[Array, ""], bias: Float[Array, ""] | None
) -> Float[Array, "n n"]:
    cosines = jnp.matmul(unit(images), unit(texts).T, precision="highest")  # few, and times up to 100
    logits = jnp.exp(log_scale) * cosines
    return logits if bias is None else logits + bias
