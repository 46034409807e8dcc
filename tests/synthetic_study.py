"""A study made up for tests: tiny models with random weights, and representations with planted truths in a store.

Every model's head chooses between ImageNet's 1,000 classes; ``h`` is the class's row of the head with noise.
Robust models ("zero-shot"): one outlier coordinate, which all rows of the head share and which so is a privileged
direction; classes that differ in few directions; little noise under shift; many concepts along the head's directions.
The others: no outlier, classes in all directions, much noise under shift, few concepts (many in the "less-robust").
"""

import dataclasses
from pathlib import Path

import numpy as np
import scipy.sparse
from flax import nnx

from experiments.study import Study, StudyModel
from jaxclip import checkpoint, config
from jaxclip.analysis import SHIFTS
from jaxclip.analyze import Options
from jaxclip.data import imagenet_wnids
from jaxclip.datasets import class_subset, label_map
from jaxclip.datasets.named import Concepts
from jaxclip.model import load_model
from jaxclip.models import clip
from jaxclip.store import MANIFEST, Representations, key_of, model_digest, shard_path, write_json, write_shard

D, OUTLIER, IMAGES = 64, 5, 256
VISION = config.ViT(image_size=32, patch_size=16, width=D, layers=1, heads=2, mlp_width=64)
CONCEPTS, IMAGES_WITH_CONCEPTS = 12, 400
ENCODED = {"zero-shot": 8, "less-robust": 7, "fine-tuned": 5, "supervised": 3}
"""How many concepts lie along directions of a model of each group."""
NO_OBJECTNET, NO_HEAD, ABSENT = "synthetic-supervised-b", "synthetic-no-head", "synthetic-absent"
MODELS = {
    "synthetic-zero-shot-a": ("zero-shot", "backbone-a"),
    "synthetic-zero-shot-b": ("zero-shot", "backbone-b"),
    "synthetic-fine-tuned-a": ("fine-tuned", "backbone-a"),
    "synthetic-captions-a": ("less-robust", "backbone-a"),
    "synthetic-supervised-a": ("supervised", "backbone-a"),
    NO_OBJECTNET: ("supervised", "backbone-b"),
    NO_HEAD: ("supervised", "backbone-b"),
    ABSENT: ("zero-shot", "backbone-b"),
}


def study(root: Path) -> Study:
    """The study's configuration; :func:`make` makes what it names."""
    return Study(
        title="Synthetic study",
        models=tuple(
            StudyModel(name, root / "checkpoints" / name, group, backbone, "synthetic")  # type: ignore[arg-type]
            for name, (group, backbone) in MODELS.items()
        ),
        store=root / "store",
        read_concepts=planted_concepts,
        options=Options(fractions=(0.0, 0.25, 0.5, 0.8, 0.9, 1.0), concept_thresholds=(0.6, 0.8, 0.9, 0.95)),
        note="<p>Synthetic models with planted truths, made by a test: no number here is of a real model.</p>",
    )


def planted_concepts(stored: Representations) -> Concepts:
    """Which images of the made-up concept set have which concept: about a third each, independent."""
    shown = np.random.default_rng(7).random((IMAGES_WITH_CONCEPTS, CONCEPTS)) < 0.33
    names = tuple(f"synthetic concept {c}" for c in range(CONCEPTS))
    return Concepts(scipy.sparse.csr_array(shown)[stored.indices], names, ("object",) * CONCEPTS)


def make(root: Path) -> Study:
    """Checkpoints and store of the study: everything but what it is to lack."""
    made = study(root)
    for seed, model in enumerate(made.models):
        if model.name == ABSENT:
            continue
        rng = np.random.default_rng(seed)
        robust = model.group == "zero-shot"
        W = classes_matrix(rng, robust)
        save_classifier(model.folder, model.name, W, rng)
        digest = model_digest(load_model(model.folder))
        for set_ in ("imagenet2012", *SHIFTS):
            if (model.name, set_) != (NO_OBJECTNET, "objectnet"):
                noise = 0.17 if robust else 0.2 if set_ == "imagenet2012" else 0.28
                h, labels, names = images(np.random.default_rng(seed + 100), W, set_, robust, noise)
                put(root / "store", model.name, digest, set_, h, labels, names)
        if model.name == NO_HEAD:
            (model.folder / checkpoint.CONFIG).unlink()
        h = concept_images(np.random.default_rng(seed + 200), W, ENCODED[model.group], robust)
        put(root / "store", model.name, digest, "broden", h, np.full(len(h), -1), ())
    return made


def classes_matrix(rng: np.random.Generator, robust: bool) -> np.ndarray:
    """W [1000, D]: unit rows, in 12 random directions or in all; the outlier coordinate the same in every row."""
    W = rng.standard_normal((1000, 12 if robust else D))
    if robust:
        rest = np.linalg.qr(np.delete(np.eye(D), OUTLIER, axis=1) @ rng.standard_normal((D - 1, 12)))[0]
        W = W @ rest.T
    W /= np.linalg.norm(W, axis=1, keepdims=True)
    if robust:
        W[:, OUTLIER] = 1.0
    return W.astype(np.float32)


def images(
    rng: np.random.Generator, W: np.ndarray, set_: str, robust: bool, noise: float
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Representations, labels and the labels' classes of a made-up set, with normal noise in every feature."""
    if set_ == "objectnet":
        places = label_map(set_)
        labels = rng.integers(0, len(places), IMAGES)
        right = np.array([list(places.values())[label][0] for label in labels])
        names = tuple(places)
    else:
        subset = class_subset(set_)
        labels = right = rng.choice(np.arange(1000) if subset is None else subset, IMAGES)
        names = tuple(imagenet_wnids())
    h = W[right] + noise * rng.standard_normal((IMAGES, D))
    if robust:
        h[:, OUTLIER] = 6.0
    return h.astype(np.float32), labels.astype(np.int32), names


def concept_images(rng: np.random.Generator, W: np.ndarray, encoded: int, robust: bool) -> np.ndarray:
    """Representations where the first ``encoded`` concepts are each a step along a direction of the head."""
    directions = np.linalg.svd(W.astype(np.float64), full_matrices=False)[2]
    shown = np.random.default_rng(7).random((IMAGES_WITH_CONCEPTS, CONCEPTS)) < 0.33
    h = 0.1 * rng.standard_normal((IMAGES_WITH_CONCEPTS, D))
    h += shown[:, :encoded] @ directions[1 : 1 + encoded]
    return h.astype(np.float32)


def save_classifier(folder: Path, name: str, W: np.ndarray, rng: np.random.Generator) -> None:
    """A classifier with random weights and the head W."""
    cfg = config.ModelConfig(name, VISION, config.Preprocess(32), num_classes=len(W))
    leaves = checkpoint.named(nnx.split(clip.abstract(cfg))[1])
    arrays = {key: 0.1 * rng.standard_normal(leaf.shape, np.float32) for key, leaf in leaves.items()}
    checkpoint.save(folder, cfg, arrays | {"head.kernel": W.T.copy(), "head.bias": np.zeros(len(W), np.float32)})


def put(
    store: Path, model: str, digest: str, set_: str, h: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]
) -> None:
    """Finished representations, as `jaxclip embed` leaves them."""
    identity = {
        "model": digest,
        "data": f"synthetic {set_}",
        "dtype": "float32",
        "store_dtype": "float32",
        "jaxclip": "0",
    }
    folder = store / key_of(identity)
    folder.mkdir(parents=True)
    ids = [f"{set_}/{i:04}.png" for i in range(len(h))]
    sha256 = write_shard(shard_path(folder, 0), h, labels, np.arange(len(h)), ids)
    shard = {"file": "00000.parquet", "sha256": sha256, "rows": len(h), "rounding": 0.0, "bad_images": []}
    manifest = {
        "identity": identity,
        "model": {"name": model, "source": {}},
        "data": {"name": set_, "pictures": len(h), "classes": classes},
        "n": len(h),
        "d": h.shape[1],
        "rounding": 0.0,
        "shards": [shard],
    }
    write_json(folder / MANIFEST, manifest)


def with_groups(made: Study, groups: dict[str, str]) -> Study:
    """The same models, said to be of other groups."""
    models = tuple(dataclasses.replace(m, group=groups.get(m.group, m.group)) for m in made.models)  # type: ignore[arg-type]
    return dataclasses.replace(made, models=models)
