"""Small models with random weights and a small data set, which several test files build."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from jaxclip import checkpoint, config
from jaxclip.model import Model
from jaxclip.models import clip

VISION = config.ViT(image_size=32, patch_size=16, width=64, layers=2, heads=2, mlp_width=128, output_dim=32)
TEXT = config.Text(77, 49408, 32, 2, 2, 64, 32)


@functools.cache
def tiny_clip(text: config.Text = TEXT) -> Model:
    return _random(config.ModelConfig("tiny-clip", VISION, config.Preprocess(32), text))


@functools.cache
def tiny_classifier(classes: int) -> Model:
    return _random(config.ModelConfig("tiny-classifier", VISION, config.Preprocess(32), num_classes=classes))


def _random(cfg: config.ModelConfig) -> Model:
    """Noise in every parameter, by NumPy: Flax's own initialisation compiles for many seconds."""
    graph, state = nnx.split(clip.abstract(cfg))
    rng = np.random.default_rng(0)
    arrays = {name: 0.2 * rng.standard_normal(x.shape, np.float32) for name, x in checkpoint.named(state).items()}
    return Model(cfg, nnx.merge(graph, checkpoint.fill(state, arrays)))


def changed(model: Model, cfg: config.ModelConfig | None = None, name: str | None = None, by: float = 1e-3) -> Model:
    """Another configuration of the same parameters, or one parameter with one element changed."""
    arrays = {n: np.array(a) for n, a in checkpoint.named(model.params).items()}
    if name is not None:
        arrays[name].flat[-1] += by
    graph, state = nnx.split(clip.abstract(cfg or model.config))
    return Model(cfg or model.config, nnx.merge(graph, checkpoint.fill(state, arrays)))


def unit(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def class_folders(samples: list[Path], root: Path) -> Path:
    """Copies of real pictures in class folders whose names are no WNIDs: 3 of birds, 4 of fish."""
    for folder, paths in (("bird", samples[7:10]), ("fish", samples[0:4])):
        (root / folder).mkdir(parents=True)
        for path in paths:
            (root / folder / path.name).write_bytes(path.read_bytes())
    return root


def cache_size(jitted: Any) -> int:
    """How many times a jitted function has been compiled."""
    return jitted._cache_size()
