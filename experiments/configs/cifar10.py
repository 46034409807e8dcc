"""The study in miniature: CIFAR-10 (Krizhevsky 2009), four small models, shift sets made after CIFAR-10-C, 2 CPU cores.

``python -m experiments.cifar10 --out ROOT`` makes all that is named here: checkpoints, pictures, representations,
report. CIFAR-10 has no captions: those of the CLIP are written here from the class's names, by templates, so that
language says no more than the class does. All models see the same 50,000 training pictures, so that nothing here can
tell what other pretraining data does, which the paper's CLIPs have and its supervised models have not.
"""

import json
from pathlib import Path

import numpy as np
import scipy.sparse
from jaxtyping import Int

from experiments.study import Interpolation, Study, StudyModel
from jaxclip.analyze import Options
from jaxclip.config import ModelConfig, Preprocess, ResNet, Text, ViT
from jaxclip.datasets.named import Concepts
from jaxclip.registry import Group
from jaxclip.store import Representations
from jaxclip.training.augment import Augment
from jaxclip.training.optimizer import Optimizer
from jaxclip.training.recipe import Recipe

SEED = 0
REFERENCE = "cifar10"
SHIFTS = ("gaussian_noise", "defocus_blur", "contrast", "pixelate", "jpeg_compression")
SEVERITY = 4
SHIFTED_OF_EACH_CLASS = 200
"""How many test pictures of each class are in a shift set: the first ones."""
ALPHAS = (0.2, 0.4, 0.6, 0.8)
PIXEL_CONCEPTS = "pixel_concepts.json"

# --- models ----------------------------------------------------------------------------------------------------------

_HALF = (0.5, 0.5, 0.5)
_SMALL = Preprocess(24, mean=_HALF, std=_HALF)
_BACKBONE = {"width": 96, "layers": 6, "heads": 2, "mlp_width": 192, "activation": "quick_gelu", "pool": "average"}
CLIP = ModelConfig(
    "clip-vit",
    ViT(24, 4, output_dim=96, pre_norm=False, patch_bias=True, **_BACKBONE),  # type: ignore[arg-type]
    _SMALL,
    text=Text(16, 49408, width=64, layers=2, heads=2, mlp_width=128, output_dim=96),
)
VIT = ModelConfig(
    "supervised-vit",
    ViT(24, 4, pre_norm=False, patch_bias=True, **_BACKBONE),  # type: ignore[arg-type]
    _SMALL,
    num_classes=10,
)
RESNET = ModelConfig(
    "supervised-resnet",
    ResNet(32, (1, 1, 1), width=64, block="basic", stem="3x3"),
    Preprocess(32, mean=_HALF, std=_HALF),
    num_classes=10,
)

_AUGMENT = Augment(crop_scale=(0.75, 1.0))
_ADAMW = Optimizer(learning_rate=2e-3, warmup=0.1, weight_decay=0.1)
_COMMON = {"batch_size": 128, "augment": _AUGMENT, "dtype": "float32", "seed": SEED, "log": 50}
RECIPES = {
    CLIP.name: Recipe(6, optimizer=_ADAMW, save=1, **_COMMON),  # type: ignore[arg-type]
    VIT.name: Recipe(11, optimizer=_ADAMW, label_smoothing=0.1, save=2, snapshots=True, **_COMMON),  # type: ignore[arg-type]
    RESNET.name: Recipe(
        18,
        optimizer=Optimizer("sgd", learning_rate=0.1, warmup=0.2, weight_decay=5e-4, b1=0.9, clip_norm=None),
        label_smoothing=0.1,
        save=2,
        snapshots=True,
        **_COMMON,  # type: ignore[arg-type]
    ),
    f"{CLIP.name}-finetuned": Recipe(
        1.5,
        optimizer=Optimizer(learning_rate=3e-4, warmup=0.1, weight_decay=0.1),
        label_smoothing=0.1,
        save=0.5,
        **_COMMON,  # type: ignore[arg-type]
    ),
}

# --- captions --------------------------------------------------------------------------------------------------------

NAMES = {
    "airplane": ("airplane", "plane", "jet"),
    "automobile": ("automobile", "car", "motor car"),
    "bird": ("bird", "little bird"),
    "cat": ("cat", "kitten"),
    "deer": ("deer", "stag"),
    "dog": ("dog", "puppy"),
    "frog": ("frog", "toad"),
    "horse": ("horse", "pony"),
    "ship": ("ship", "boat", "vessel"),
    "truck": ("truck", "lorry"),
}
TEMPLATES = (
    "a photo of a {}.",
    "a small photo of a {}.",
    "a picture of a {}.",
    "a blurry photo of a {}.",
    "this is a {}.",
    "a {}.",
)
"""Of the captions, and of the zero-shot head, which reads the class's own name alone."""
KIND = " it is {}."
"""What half of the captions say besides."""


def captions(labels: Int[np.ndarray, " n"], classes: tuple[str, ...], seed: int = SEED) -> tuple[str, ...]:
    """A caption for each picture: one of its class's names in one of the templates, and in half of them its kind."""
    rng = np.random.default_rng(seed)
    texts = []
    for name in (classes[label] for label in labels):
        text = str(rng.choice(TEMPLATES)).format(rng.choice(NAMES[name]))
        kind = "an animal" if name in CONCEPTS["animal"] else "a vehicle"
        texts.append(text + (KIND.format(kind) if rng.random() < 0.5 else ""))
    return tuple(texts)


# --- concepts --------------------------------------------------------------------------------------------------------

CONCEPTS: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in NAMES},
    "animal": ("bird", "cat", "deer", "dog", "frog", "horse"),
    "vehicle": ("airplane", "automobile", "ship", "truck"),
    "has wheels": ("airplane", "automobile", "truck"),
    "road vehicle": ("automobile", "truck"),
    "flies": ("airplane", "bird"),
    "swims or floats": ("frog", "ship"),
    "four-legged mammal": ("cat", "deer", "dog", "horse"),
    "pet": ("cat", "dog"),
    "has hooves": ("deer", "horse"),
    "has fur": ("cat", "deer", "dog", "horse"),
}
"""What is looked for in the representations: which classes show which concept."""
PIXELS = ("bright", "dark", "reddish", "greenish", "bluish")
"""Concepts of the pixels, which no caption names: the tenth of the test pictures that are most so."""

TRAINED_ON: dict[Group, str] = {
    "zero-shot": "captions",
    "fine-tuned": "captions, classes",
    "supervised": "classes",
}
"""CIFAR-10, each time; what differs is what is said of its pictures."""


def get_config(root: Path) -> Study:
    """The models and sets that ``python -m experiments.cifar10 --out ROOT`` leaves under ``root``."""

    def model(name: str, folder: Path, group: Group, backbone: str = "ViT") -> StudyModel:
        return StudyModel(name, folder, group, backbone, TRAINED_ON[group])

    def snapshots(config: ModelConfig, backbone: str) -> list[StudyModel]:
        """But those at the very end, which are the model itself."""
        found = {
            int(f.name.removeprefix("step_")): f for f in sorted((root / config.name / "snapshots").glob("step_*"))
        }
        return [
            model(f"{config.name}-{folder.name}", folder, "supervised", backbone)
            for step, folder in found.items()
            if step < 0.95 * max(found)
        ]

    def read_concepts(stored: Representations) -> Concepts:
        shown = {name: np.isin(np.array(stored.classes), of)[stored.labels] for name, of in CONCEPTS.items()}
        pixels = json.loads((root / PIXEL_CONCEPTS).read_text())
        shown |= {name: np.isin(stored.ids, ids) for name, ids in pixels.items()}
        kinds = ["class" if name in NAMES else "pixels" if name in pixels else "kind" for name in shown]
        return Concepts(scipy.sparse.csr_array(np.array([*shown.values()]).T), tuple(shown), tuple(kinds))

    clip, tuned = CLIP.name, f"{CLIP.name}-finetuned"
    ends = model(clip, root / clip / "last", "zero-shot"), model(tuned, root / tuned / "last", "fine-tuned")
    vit = model(VIT.name, root / VIT.name / "last", "supervised")
    resnet = model(RESNET.name, root / RESNET.name / "last", "supervised", "ResNet")
    return Study(
        title="CIFAR-10 in miniature",
        models=(*ends, vit, resnet),
        standard=(*snapshots(VIT, "ViT"), vit, *snapshots(RESNET, "ResNet"), resnet),
        interpolated=(
            Interpolation(
                ends[0],
                ends[1],
                {
                    alpha: model(f"{tuned}-alpha_{alpha:.2f}", root / "wise_ft" / f"alpha_{alpha:.2f}", "fine-tuned")
                    for alpha in ALPHAS
                },
            ),
        ),
        store=root / "store",
        reference=REFERENCE,
        shifts=SHIFTS,
        templates=TEMPLATES,
        concept_set=REFERENCE,
        read_concepts=read_concepts,
        options=Options(seed=SEED),
        note=NOTE,
    )


NOTE = f"""
<p>A miniature on real pictures, not the paper’s result: models of 1.2 million parameters at the most (beside the
CLIP’s table of tokens) that saw CIFAR-10 alone. The CLIP’s captions were written from the class’s names by templates,
as CIFAR-10 has none; ten classes mean that a batch holds each caption’s class about a dozen times, all of which but one
the contrastive loss takes for wrong. Its zero-shot head is of class names that were in its captions. A head over ten
classes has ten directions, so that 80 % pruned leaves two, and few concepts can lie along them.</p>
<p>The shift sets were made here after CIFAR-10-C (Hendrycks and Dietterich 2019; their constants for CIFAR, severity
{SEVERITY}) from the first {SHIFTED_OF_EACH_CLASS} test pictures of each class: {", ".join(SHIFTS)}. They are not
CIFAR-10-C itself.</p>
<p>The line of effective robustness goes through the supervised ViT and ResNet and their snapshots during training, in
the place of the paper’s independent standard models. Snapshots of one run are no independent models: the bootstrap
intervals are too narrow, and the two supervised models’ own effective robustness is near zero because they are on the
line that it is measured from.</p>
"""
