"""The objectives, from pixels to the loss, against numpy; the models are linear ones made up for it."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.training import losses
from jaxclip.training.objectives import Classes, ImageText

pytestmark = pytest.mark.usefixtures("float32_products")

MEAN, STD = (0.4, 0.5, 0.3), (0.2, 0.3, 0.25)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 2, 2, 3), np.uint8)
PIXELS = ((IMAGES / 255 - MEAN) / STD).reshape(6, 12)
W, U, V = RNG.standard_normal((5, 4)), RNG.standard_normal((12, 5)), RNG.standard_normal((3, 5))
KEY = jax.random.key(0)


def encode(images: Any, matrix: np.ndarray) -> tuple[Any, None]:
    return images.reshape(len(images), -1) @ jnp.asarray(matrix, jnp.float32), None


class LinearHead:
    out_features = 4

    def __call__(self, h: Any) -> Any:
        return h @ jnp.asarray(W, jnp.float32)


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum(1, keepdims=True))


@pytest.mark.parametrize("unit", [False, True])
def test_loss_of_classes_is_numpy_s(unit: bool) -> None:
    """Pixels by mean and std, unit length where asked, smoothed and mixed targets; a mixed picture is right in its
    larger part. A recipe's option that is passed over would train another model than it says.
    """
    model: Any = SimpleNamespace(encode_image=lambda images: encode(images, U), head=LinearHead())
    h = PIXELS @ U
    logits = (h / np.linalg.norm(h, axis=1, keepdims=True) if unit else h) @ W
    labels = (logits.argmax(1) + np.array([0, 0, 1, 0, 0, 2])) % 4  # four of six are right
    mixed = 0.7 * np.eye(4)[labels] + 0.3 * np.eye(4)[labels[::-1]]
    for mix, targets in ((None, np.eye(4)[labels]), (lambda key, x, y: (x, 0.7 * y + 0.3 * y[::-1]), mixed)):
        objective = Classes(MEAN, STD, smoothing=0.2, unit=unit, mix=mix)
        loss, metrics = jax.jit(lambda batch, f=objective: f(model, batch, KEY))({"images": IMAGES, "labels": labels})
        expected = -((0.8 * targets + 0.2 / 4) * log_softmax(logits)).sum(1).mean()
        assert float(loss) == pytest.approx(expected, rel=1e-5)
        assert float(metrics["accuracy"]) == pytest.approx(4 / 6)


@pytest.mark.parametrize("kind", ["contrastive", "sigmoid"])
def test_loss_of_pairs_is_numpy_s(kind: Any) -> None:
    """The loss that was asked for, with the model's own scale and bias."""
    tokens = RNG.standard_normal((6, 3))
    model: Any = SimpleNamespace(
        encode_image=lambda images: encode(images, U),
        encode_text=lambda tokens: tokens @ jnp.asarray(V, jnp.float32),
        logit_scale=np.full((), 0.7, np.float32),
        logit_bias=np.full((), -1.5, np.float32),
    )
    objective = ImageText(MEAN, STD, kind)
    loss, metrics = jax.jit(lambda batch: objective(model, batch, KEY))({"images": IMAGES, "tokens": tokens})
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (PIXELS @ U, tokens @ V))
    logits = np.exp(0.7) * a @ b.T - 1.5
    if kind == "contrastive":
        expected = -(np.diag(log_softmax(logits)) + np.diag(log_softmax(logits.T))).mean() / 2
    else:
        expected = np.log1p(np.exp(-np.where(np.eye(6) > 0, 1, -1) * logits)).sum() / 6
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["logit_scale"]) == pytest.approx(np.exp(0.7), rel=1e-6)


def test_zero_stays_zero() -> None:
    """A dead embedding has length 0, and a gradient: 0/0 would turn every parameter into NaN at one step."""
    out, gradient = jax.jit(jax.value_and_grad(lambda x: losses.unit(x).sum()))(np.zeros((2, 3), np.float32))
    assert out == 0 and np.isfinite(gradient).all()
