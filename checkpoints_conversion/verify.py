"""Runs the source, in its own library, and the converted checkpoint on the same images, and measures the gap."""

import dataclasses
import importlib
import os

import jax.numpy as jnp
import numpy as np
from PIL import Image

import jaxclip
from jaxclip.config import ModelConfig
from jaxclip.errors import InputError
from jaxclip.model import Model
from jaxclip.preprocess import normalize, preprocess
from jaxclip.tokenizer import load_tokenizer

LIBRARIES = ("torch", "torchvision", "open_clip", "transformers", "timm")
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


def inputs(config: ModelConfig, crops: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """What the reference reads of uint8 crops [n, s, s, 3]: normalised pixels, and token ids where there is text."""
    pixels = config.preprocess
    images = np.asarray(normalize(jnp.asarray(crops), pixels.mean, pixels.std))
    return images, None if config.text is None else load_tokenizer(config.text.context_length)(SENTENCES)


def compare(model: Model, crops: np.ndarray, theirs: dict[str, np.ndarray]) -> list[Difference]:
    """Our side of the comparison, and how far it is from the reference's.

    Args:
        model: The converted checkpoint.
        crops: uint8 [n, s, s, 3].
        theirs: What :func:`checkpoints_conversion.reference.features` made of the :func:`inputs` of the same crops.
    """
    _, tokens = inputs(model.config, crops)
    ours = {"image": np.asarray(model.encode_image(crops))}
    if tokens is not None:
        ours["text"] = np.asarray(model.encode_text(tokens))
    if model.head is not None:
        weight, bias = map(np.asarray, model.head)
        ours["logits"] = ours["image"] @ weight.T + bias
    return [difference(what, ours[what], theirs[what]) for what in theirs]


def sample_crops(config: ModelConfig) -> np.ndarray:
    """Made-up pictures [8, s, s, 3], uint8: smooth random colour fields, preprocessed as the model wants."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (8, 24, 32, 3), dtype=np.uint8)
    pictures = (Image.fromarray(x).resize((640, 480), Image.Resampling.BICUBIC) for x in small)
    return np.stack([preprocess(picture, config.preprocess) for picture in pictures])


def check_libraries() -> None:
    """Raises an InputError where one of the reference libraries, of whatever format, is not installed or not whole."""
    for name in LIBRARIES:
        try:
            importlib.import_module(name)
        except Exception as error:  # a library that does not fit another raises what it likes
            raise InputError(
                f"--verify needs {name}, which cannot be imported ({error}): pip install jaxclip[parity]"
            ) from None


def verify(source: str | os.PathLike, checkpoint: str | os.PathLike) -> list[Difference]:
    """Compares a converted checkpoint with its source, run by the reference library.

    Args:
        source: What was converted: file, folder, hub id or URL.
        checkpoint: The folder that ``convert`` wrote.

    Raises:
        InputError: The reference libraries are not installed, or one of the two cannot be read.
    """
    check_libraries()
    from checkpoints_conversion import reference
    from checkpoints_conversion.sources import open_weights

    model = jaxclip.load_model(checkpoint)
    source_format = model.config.source["format"]
    module = reference.build(model.config, source_format)
    reference.load(module, open_weights(os.fspath(source)))
    crops = sample_crops(model.config)
    return compare(model, crops, reference.features(module, source_format, *inputs(model.config, crops)))
