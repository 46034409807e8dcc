"""Runs in its own process for test_training_loop.py: a tiny training run that may be killed, or 8 devices beside 1."""

import io
import sys
import time
from pathlib import Path

import grain
import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from PIL import Image

from jaxclip import config
from jaxclip.datasets import Example
from jaxclip.models import clip
from jaxclip.training.augment import Augment, make_mix
from jaxclip.training.data import class_batches
from jaxclip.training.loop import Schedule, fit, train_mesh
from jaxclip.training.objectives import Classes, ImageText
from jaxclip.training.optimizer import Optimizer, make_optimizer
from jaxclip.training.state import make_step

PIXELS = config.Preprocess(32)
RESNET = config.ModelConfig("toy", config.ResNet(32, (1, 1, 1, 1), 8), PIXELS, num_classes=4)
VIT = config.ModelConfig("toy", config.ViT(32, 16, 32, 1, 2, 64), PIXELS, num_classes=4)
CLIP = config.ModelConfig(
    "toy",
    config.ViT(32, 16, 32, 1, 2, 64, 16),
    PIXELS,
    config.Text(8, 64, 32, 1, 2, 64, 16),
)


class Noise:
    """A picture and a text of noise for each index."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> dict:
        rng = np.random.default_rng(int(index))
        return {
            "images": rng.integers(0, 256, (32, 32, 3), np.uint8),
            "labels": np.int32(index % 4),
            "tokens": rng.integers(1, 64, 8).astype(np.int32),
            "ids": str(index),
        }


def batches(size: int, noise: bool = False) -> grain.DatasetIterator:
    """With ``noise``, each example has some of its own generator added, and is slow, so that a kill falls anywhere."""

    def augmented(example: dict, rng: np.random.Generator) -> dict:
        time.sleep(0.05)
        return example | {"images": example["images"] ^ rng.integers(0, 8, (32, 32, 3), np.uint8)}

    data = grain.MapDataset.source(Noise()).seed(3).shuffle().repeat()
    data = data.random_map(augmented) if noise else data
    return iter(data.batch(size).to_iter_dataset())


class Pictures(Noise):
    """The same as a source, whose pictures take their time, so that a kill falls anywhere."""

    name, classes = "noise", ("a", "b", "c", "d")

    def __getitem__(self, index: int) -> Example:
        time.sleep(0.05)
        example, file = super().__getitem__(index), io.BytesIO()
        Image.fromarray(example["images"]).save(file, "PNG")
        return Example(example["ids"], file.getvalue(), int(example["labels"]))


def toy_step(cfg=VIT, steps: int = 30, *, mix: bool = True, **optimizer):
    """A small model, mixup by the run's key, EMA and accumulation: all that a checkpoint must hold."""
    module = clip.build(cfg, rngs=nnx.Rngs(0))
    recipe = Optimizer(**{"ema_decay": 0.9, "accumulate": 2, "learning_rate": 1e-2, "clip_norm": None, **optimizer})
    mean, std = PIXELS.mean, PIXELS.std
    objective = (
        ImageText(mean, std)
        if cfg.text is not None
        else Classes(mean, std, mix=make_mix(Augment(mixup=0.2)) if mix else None)
    )
    return make_step(
        module,
        objective,
        lambda params: make_optimizer(recipe, max(1, steps // recipe.accumulate), params),
        ema_decay=recipe.ema_decay,
        accumulate=recipe.accumulate,
    )


def run(out: str, workers: str = "", steps: int = 30) -> None:
    """With ``workers``, as many decode pictures."""
    data = batches(4, noise=True)
    if workers:
        data = class_batches(Pictures(), PIXELS, Augment(), 4, seed=3, workers=int(workers))
    trained = fit(toy_step(steps=steps), data, out, Schedule(steps, save=4, log=1), seed=1)
    np.savez(Path(out) / "arrays.npz", **{name: np.asarray(a) for name, a in trained.last.items()})


def devices() -> None:
    """Two steps of a ResNet (batch norm over the global batch) and of a CLIP (contrast over it), on 8 and on 1."""
    assert len(jax.devices()) == 8
    for name, cfg in (("resnet", RESNET), ("clip", CLIP)):
        ends = []
        for mesh in (train_mesh(), Mesh(np.array(jax.devices()[:1]), ("data",))):
            step = toy_step(cfg, 2, mix=False, name="sgd", accumulate=1, warmup=0.0, ema_decay=None)
            out = f"{sys.argv[2]}/{name}-{mesh.size}"
            ends.append(fit(step, batches(16), out, Schedule(2, save=2, log=1), seed=1, mesh=mesh).last)
        for leaf in ends[0]:
            a, b = (np.asarray(end[leaf], np.float64) for end in ends)
            error = np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-6)
            print(name, leaf, error)
            assert error < 1e-4, f"{name}: {leaf} differs by {error} between 8 devices and 1"


if __name__ == "__main__":
    {"run": run, "devices": lambda _: devices()}[sys.argv[1]](*sys.argv[2:])
