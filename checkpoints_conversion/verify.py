"""Runs the source, in its own library, and the converted checkpoint on the same images, and measures the gap."""

import dataclasses
import os

import jax.numpy as jnp
import numpy as np
from PIL import Image

import jaxclip
from jaxclip.errors import InputError
from jaxclip.model import Model
from jaxclip.preprocess import normalize

SENTENCES = (
    "a photo of a cat.",
    "a photo of the number 7, and of nothing else!",
    "itap of a café — naïve, “quoted” & 漢字",
    "a",
)


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far two arrays of features [n, d] are apart.

    Attributes:
        what: ``image``, ``text`` or ``logits``.
        largest: Largest absolute difference.
        mean: Mean absolute difference.
        relative: The largest, over the rows, of the norm of the difference over the norm of the reference.
        cosine: The smallest, over the rows, cosine of the two.
    """

    what: str
    largest: float
    mean: float
    relative: float
    cosine: float


def difference(what: str, ours: np.ndarray, reference: np.ndarray) -> Difference:
    """Compares two arrays [n, d] in float64.

    Raises:
        InputError: One of them is not finite, so that a comparison says nothing.
    """
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    if not (np.isfinite(ours).all() and np.isfinite(reference).all()):
        raise InputError(f"{what}: features are not finite")
    gap = ours - reference
    norms = np.linalg.norm(reference, axis=1)
    cosines = (ours * reference).sum(1) / (norms * np.linalg.norm(ours, axis=1))
    return Difference(
        what,
        float(np.abs(gap).max()),
        float(np.abs(gap).mean()),
        float((np.linalg.norm(gap, axis=1) / norms).max()),
        float(cosines.min()),
    )


def features(model: Model, images: np.ndarray, tokens: np.ndarray | None) -> dict[str, np.ndarray]:
    """Our side of the comparison, with the keys of :func:`checkpoints_conversion.reference.features`."""
    out = {"image": np.asarray(model.encode_image(images))}
    if tokens is not None:
        out["text"] = np.asarray(model.encode_text(tokens))
    if model.head is not None:
        weight, bias = map(np.asarray, model.head)
        out["logits"] = out["image"] @ weight.T + bias
    return out


def sample_images(model: Model, n: int = 8, seed: int = 0) -> np.ndarray:
    """Made-up pictures [n, s, s, 3], uint8: smooth random colour fields, preprocessed as the model wants."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (n, 24, 32, 3), dtype=np.uint8)
    pictures = (Image.fromarray(x).resize((640, 480), Image.Resampling.BICUBIC) for x in small)
    return np.stack([model.preprocess(picture) for picture in pictures])


def compare(model: Model, module, source_format: str, crops: np.ndarray) -> list[Difference]:
    """Both sides on the same crops.

    Args:
        model: The converted checkpoint.
        module: The reference model.
        source_format: As :func:`checkpoints_conversion.tables.detect` names it.
        crops: uint8 [n, s, s, 3].
    """
    from checkpoints_conversion import reference

    pixels = model.config.preprocess
    images = np.asarray(normalize(jnp.asarray(crops), pixels.mean, pixels.std))
    tokens = np.asarray(model.tokenize(SENTENCES)) if model.config.text is not None else None
    theirs = reference.features(module, source_format, images, tokens)
    ours = features(model, crops, tokens)
    return [difference(what, ours[what], theirs[what]) for what in theirs]


def verify(source: str | os.PathLike, checkpoint: str | os.PathLike) -> list[Difference]:
    """Compares a converted checkpoint with its source, run by the reference library.

    Args:
        source: What was converted: file, folder, hub id or URL.
        checkpoint: The folder that ``convert`` wrote.

    Raises:
        InputError: The reference libraries are not installed, or one of the two cannot be read.
    """
    try:
        from checkpoints_conversion import reference
    except ImportError as error:
        raise InputError(f"--verify needs the reference libraries ({error}): pip install jaxclip[parity]") from None
    from checkpoints_conversion.sources import open_weights

    model = jaxclip.load_model(checkpoint)
    source_format = model.config.source["format"]
    try:
        module = reference.build(model.config, source_format)
    except ImportError as error:
        raise InputError(f"--verify needs the reference libraries ({error}): pip install jaxclip[parity]") from None
    reference.load(module, open_weights(os.fspath(source)))
    return compare(model, module, source_format, sample_images(model))
