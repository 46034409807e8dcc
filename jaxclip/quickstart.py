"""The quickstart: a toy CLIP and a toy classifier, trained on scikit-learn's digits and compared under shift.

It goes the whole way that real checkpoints go (towers, Orbax, ``load_model``, the zero-shot head, the analyses, the
report) with nothing to download. The training loop is deliberately small; nothing here says anything about the paper.
"""

import dataclasses
import functools
import html
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8
from matplotlib.figure import Figure
from PIL import Image
from rich.table import Table
from scipy import ndimage
from scipy.sparse import csr_array
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from jaxclip import analyze, checkpoint, report
from jaxclip.analysis import linear_cka
from jaxclip.analyze import Activations, ConceptSummary, Directions, Head, Labelled, Options, Pruning
from jaxclip.config import ModelConfig, Preprocess, Text, ViT
from jaxclip.datasets.named import Concepts
from jaxclip.errors import InputError
from jaxclip.evaluation import Accuracy
from jaxclip.files import new_file
from jaxclip.model import load_model
from jaxclip.models import clip
from jaxclip.preprocess import normalize
from jaxclip.progress import console, progress
from jaxclip.sections import (
    Section,
    best_concepts_table,
    concept_figure,
    concept_table,
    estimate,
    importance_figure,
    importance_table,
    kurtosis_table,
    outlier_table,
    pruning_figure,
    pruning_table,
)
from jaxclip.tokenizer import load_tokenizer
from jaxclip.training.losses import MAX_LOG_SCALE

T = TypeVar("T")

TOY = (
    "This is a toy: small models on scikit-learn's 8x8 handwritten digits. "
    "It shows that everything works; it is not the paper's result, and says nothing about it."
)
CLASSNAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = (
    "a photo of the digit {}.",
    "a photo of the number {}.",
    "a handwritten {}.",
    "a scan of a handwritten {}.",
    "the digit {}, written by hand.",
    "the number {} in white ink.",
    "a small picture of a {}.",
    "this is a {}.",
)
CONCEPTS: dict[str, tuple[int, ...]] = {name: (digit,) for digit, name in enumerate(CLASSNAMES)} | {
    "even": (0, 2, 4, 6, 8),
    "odd": (1, 3, 5, 7, 9),
    "above four": (5, 6, 7, 8, 9),
    "closed loop": (0, 6, 8, 9),
    "straight strokes only": (1, 4, 7),
    "round at the bottom": (0, 3, 5, 6, 8),
}
"""What is looked for in the representations: which digits show which concept."""
HELD_OUT = "held-out"
STEPS, BATCH, LEARNING_RATE = 450, 64, 2e-3

FRACTIONS = tuple(i / 10 for i in range(11))
"""Shares of the head's directions to prune."""

_PIXELS = Preprocess(size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
_VISION = ViT(image_size=32, patch_size=8, width=64, layers=4, heads=2, mlp_width=256)
_TEXT = Text(context_length=16, vocab_size=49408, width=64, layers=2, heads=2, mlp_width=256, output_dim=64)
CONFIGS = {
    "clip": ModelConfig("quickstart-clip", dataclasses.replace(_VISION, output_dim=64), _PIXELS, text=_TEXT),
    "supervised": ModelConfig("quickstart-supervised", _VISION, _PIXELS, num_classes=len(CLASSNAMES)),
}
LABELS = {"clip": "toy CLIP", "supervised": "toy classifier"}


@dataclasses.dataclass(frozen=True)
class Quickstart:
    """What :func:`quickstart` finds. All dictionaries are by model: ``clip``, ``supervised``.

    Attributes:
        accuracy: On each set of pictures (``held-out`` and the shifts).
        losses: The training loss at each step.
        activations: Kurtosis and outlier features on the held-out digits.
        directions: The head's directions, ranked on the held-out digits.
        pruned: Accuracy on each set of pictures for each of ``FRACTIONS``.
        concepts: Which of ``CONCEPTS`` the directions encode, on the held-out digits.
        cka: Linear CKA between the two models, on each set of pictures.
        report: The page.
    """

    accuracy: dict[str, dict[str, Accuracy]]
    losses: dict[str, Float[np.ndarray, " steps"]]
    activations: dict[str, Activations]
    directions: dict[str, Directions]
    pruned: dict[str, Pruning]
    concepts: dict[str, ConceptSummary]
    cka: dict[str, float]
    report: Path


def quickstart(out: str | os.PathLike = "quickstart", seed: int = 0, *, steps: int = STEPS) -> Quickstart:
    """Trains both models, evaluates and analyses them on held-out digits and five shifts, writes a report.

    The same seed gives the same numbers and the same report on the same machine.

    Args:
        out: The folder to write: checkpoints ``clip/`` and ``supervised/``, and ``report.html``. An earlier
            quickstart's are replaced.
        seed: Of the split, the initialisation, the batches, the shifts and the analyses' samples.
        steps: Of training, for each model.

    Raises:
        InputError: ``out`` is a file, or has a folder of one of these names that is no quickstart's; or the seed is out
            of range.
    """
    start, out, terminal = time.monotonic(), Path(out), console()
    options = Options(fractions=FRACTIONS, seed=seed)
    _check_free(out)
    terminal.print(TOY, style="bold yellow")
    split_key, train_key, shift_key = jax.random.split(jax.random.key(seed), 3)
    (train_images, train_labels), (images, labels) = digits(split_key)
    training: dict[str, Loss] = {
        "clip": functools.partial(contrastive_loss, captions=jnp.asarray(captions())),
        "supervised": class_loss,
    }
    losses = {}
    for name, loss in training.items():
        model, losses[name] = train(
            CONFIGS[name], loss, train_images, train_labels, steps=steps, key=train_key, what=f"train {name}"
        )
        checkpoint.save(out / name, CONFIGS[name], checkpoint.named(model), overwrite=True)

    sets = {HELD_OUT: images} | {
        name: shift(images, key)
        for (name, shift), key in zip(SHIFTS.items(), jax.random.split(shift_key, len(SHIFTS)), strict=True)
    }
    models = {name: load_model(out / name) for name in CONFIGS}
    heads = {name: analyze.read_head(model, CLASSNAMES, TEMPLATES) for name, model in models.items()}
    answers, classes = np.eye(len(CLASSNAMES), dtype=bool), np.arange(len(CLASSNAMES))
    data = {
        name: {s: Labelled(np.asarray(model.encode_image(x)), labels, answers, classes) for s, x in sets.items()}
        for name, model in models.items()
    }
    accuracy = {n: {s: analyze.accuracy(heads[n], x) for s, x in mine.items()} for n, mine in data.items()}
    terminal.print(_console_table(accuracy))

    h = {name: mine[HELD_OUT].h for name, mine in data.items()}
    ranked = {name: analyze.rank(heads[name], h[name], options) for name in models}
    shown = np.array([np.isin(labels, digits) for digits in CONCEPTS.values()]).T
    concepts = Concepts(csr_array(shown), tuple(CONCEPTS), ("digits",) * len(CONCEPTS))
    ids = [f"{CLASSNAMES[label]} {row}" for row, label in enumerate(labels)]
    result = Quickstart(
        accuracy=accuracy,
        losses=losses,
        activations={n: analyze.activations(h[n], options) for n in models},
        directions={n: analyze.directions(ranked[n], options) for n in models},
        pruned={
            n: Pruning(list(FRACTIONS), {s: analyze.prune(heads[n], ranked[n], x, options) for s, x in mine.items()})
            for n, mine in data.items()
        },
        concepts={
            n: analyze.summarise_concepts(h[n], ids, concepts, ranked[n].directions, options, top=len(CONCEPTS))
            for n in models
        },
        cka={s: linear_cka(*(jnp.asarray(mine[s].h) for mine in data.values())) for s in sets},
        report=out / "report.html",
    )
    with new_file(result.report, encoding="utf-8") as file:
        file.write(_page(result, heads, data, sets, seed=seed, train_size=len(train_labels)))
    terminal.print(
        f"{time.monotonic() - start:.0f} s. Open {result.report}; checkpoints: {out / 'clip'}, {out / 'supervised'}",
        highlight=False,
        soft_wrap=True,
    )
    return result


# --- data ------------------------------------------------------------------------------------------------------------

Digits = tuple[UInt8[np.ndarray, "n 32 32 3"], Int[np.ndarray, " n"]]


def digits(key: Array) -> tuple[Digits, Digits]:
    """scikit-learn's 1,797 handwritten digits, two thirds to train on and one third held out, stratified by class.

    The 8x8 pictures (UCI's test set of Optical Recognition of Handwritten Digits) are enlarged to 24x24 and centred on
    black 32x32.
    """
    data = load_digits()
    images = np.zeros((len(data.images), 32, 32, 3), np.uint8)
    for image, small in zip(images, np.round(data.images * (255 / 16)).astype(np.uint8), strict=True):
        image[4:28, 4:28] = np.asarray(Image.fromarray(small).resize((24, 24), Image.Resampling.BICUBIC))[..., None]
    rest, held_out = train_test_split(
        np.arange(len(images)),
        test_size=1 / 3,
        stratify=data.target,
        random_state=int(jax.random.randint(key, (), 0, 2**31 - 1)),
    )
    return (images[rest], data.target[rest]), (images[held_out], data.target[held_out])


Images = UInt8[np.ndarray, "n H W 3"]


def rotated(images: Images, key: Array) -> Images:
    """Turned about the centre by 25 to 45 degrees, either way."""
    angle_key, sign_key = jax.random.split(key)
    degrees = jax.random.uniform(angle_key, (len(images),), minval=25, maxval=45)
    angles = np.asarray(degrees * jax.random.rademacher(sign_key, (len(images),))).tolist()
    turned = [Image.fromarray(x).rotate(a, Image.Resampling.BICUBIC) for x, a in zip(images, angles, strict=True)]
    return np.stack([np.asarray(x) for x in turned])


def noisy(images: Images, key: Array) -> Images:
    """Grey Gaussian noise with a standard deviation of 30 % of the range, clipped to the range."""
    noise = 0.3 * 255 * np.asarray(jax.random.normal(key, (*images.shape[:3], 1)))
    return np.clip(np.round(images + noise), 0, 255).astype(np.uint8)


def inverted(images: Images, key: Array) -> Images:
    """Black on white; nothing is random."""
    return 255 - images


def outline(images: Images, key: Array) -> Images:
    """The edges of the strokes (brightest minus darkest of the 3x3 neighbourhood); nothing is random."""
    return ndimage.morphological_gradient(images, size=(1, 3, 3, 1))


def occluded(images: Images, key: Array) -> Images:
    """A grey 12x12 square somewhere over the digit."""
    corners = np.asarray(jax.random.randint(key, (len(images), 2), 4, 17))
    out = images.copy()
    for image, (y, x) in zip(out, corners, strict=True):
        image[y : y + 12, x : x + 12] = 128
    return out


SHIFTS: Mapping[str, Callable[[Images, Array], Images]] = {
    f.__name__: f for f in (rotated, noisy, inverted, outline, occluded)
}


def captions() -> Int[np.ndarray, "classes templates t"]:
    """The token ids of each digit's captions, as long as the longest needs."""
    tokens = load_tokenizer(_TEXT.context_length)([t.format(name) for name in CLASSNAMES for t in TEMPLATES])
    tokens = tokens[:, : 1 + np.flatnonzero(tokens.any(axis=0))[-1]]
    return tokens.reshape(len(CLASSNAMES), len(TEMPLATES), -1)


# --- training --------------------------------------------------------------------------------------------------------


Loss = Callable[..., Float[Array, ""]]
"""From the model, normalised images, their labels and a key."""


def train(
    config: ModelConfig,
    loss: Loss,
    images: Images,
    labels: Int[np.ndarray, " n"],
    *,
    steps: int,
    key: Array,
    what: str,
) -> tuple[nnx.Module, Float[np.ndarray, " steps"]]:
    """Adam with warm-up and cosine decay, on random batches moved by up to 3 pixels each way.

    Args:
        config: The model to train from scratch.
        loss: What to make small.
        images: To train on.
        labels: Their classes.
        steps: How many batches.
        key: Of the initialisation and the batches.
        what: For the progress bar.

    Returns:
        The model, and the loss at each step.
    """
    init_key, step_key = jax.random.split(key)
    # Initialisation runs once: to compile it well takes three times longer than it can save.
    build = jax.jit(
        lambda key: nnx.state(clip.build(config, rngs=nnx.Rngs(key))),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    graph, params = nnx.split(clip.abstract(config))[0], build(init_key)
    schedule = optax.warmup_cosine_decay_schedule(0, LEARNING_RATE, steps // 10, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    pixels = config.preprocess

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, key):
        batch_key, shift_key, loss_key = jax.random.split(key, 3)
        batch = jax.random.choice(batch_key, len(images), (BATCH,), replace=False)
        shifts = jax.random.randint(shift_key, (BATCH, 2), -3, 4)  # the margin is 4: nothing comes in on the other side
        moved = jax.vmap(lambda image, shift: jnp.roll(image, shift, axis=(0, 1)))(jnp.asarray(images)[batch], shifts)
        x = normalize(moved, pixels.mean, pixels.std)
        y = jnp.asarray(labels)[batch]
        value, grads = jax.value_and_grad(lambda p: loss(nnx.merge(graph, p), x, y, loss_key))(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    state, losses = jax.jit(optimizer.init)(params), []
    with progress(what, steps, unit="steps") as advance:
        for key in jax.random.split(step_key, steps):
            params, state, value = step(params, state, key)
            losses.append(float(value))
            advance(1)
    return nnx.merge(graph, params), np.array(losses)


def contrastive_loss(
    model: clip.CLIP,
    images: Float[Array, "n H W 3"],
    labels: Int[Array, " n"],
    key: Array,
    *,
    captions: Int[Array, "classes templates t"],
) -> Float[Array, ""]:
    """CLIP's symmetric contrastive loss, where every caption in the batch that is true of an image is a positive.

    With ten classes, a batch has many captions that say the same. CLIP's one-hot targets would call all but one of them
    wrong, so targets are uniform over the pairs of equal class (UniCL, Yang et al. 2022). The targets' entropy, which
    does not depend on the model, is taken off, so that zero is the least.

    Args:
        model: The CLIP.
        images: Normalised.
        labels: Which captions are true of each.
        key: Chooses the template of each image's caption.
        captions: Token ids.
    """
    templates = jax.random.randint(key, labels.shape, 0, captions.shape[1])
    image, text = model.encode_image(images)[0], model.encode_text(captions[labels, templates])
    image, text = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    logits = jnp.exp(jnp.minimum(model.logit_scale[...], MAX_LOG_SCALE)) * image @ text.T
    same = labels[:, None] == labels
    targets = same / same.sum(axis=1, keepdims=True)  # symmetric, so it serves both ways
    both = (optax.losses.kl_divergence(jax.nn.log_softmax(x), targets).mean() for x in (logits, logits.T))
    return sum(both) / 2


def class_loss(
    model: clip.Classifier, images: Float[Array, "n H W 3"], labels: Int[Array, " n"], key: Array
) -> Float[Array, ""]:
    """Cross-entropy of the linear head; nothing is random."""
    logits = model.head(model.encode_image(images)[0])
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


# --- output ----------------------------------------------------------------------------------------------------------


def _check_free(out: Path) -> None:
    """Refuses, before any work, to replace what an earlier quickstart did not write."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: name another output folder")
    for name, config in CONFIGS.items():
        folder = out / name
        if folder.exists() and checkpoint.read_config(folder).name != config.name:
            raise InputError(f"{folder} exists and is not a quickstart's: remove it, or name another output folder")


def _console_table(accuracy: dict[str, dict[str, Accuracy]]) -> Table:
    table = Table(title="Accuracy on toy digits, % [95 % Wilson interval]")
    table.add_column("pictures")
    for name in accuracy:
        table.add_column(LABELS[name], justify="right")
    for pictures in accuracy["clip"]:
        cells = (a[pictures] for a in accuracy.values())
        table.add_row(pictures, *(f"{100 * a.value:.1f} [{100 * a.low:.1f}, {100 * a.high:.1f}]" for a in cells))
    return table


def _page(
    result: Quickstart,
    heads: dict[str, Head],
    data: dict[str, dict[str, Labelled]],
    sets: dict[str, Images],
    *,
    seed: int,
    train_size: int,
) -> str:
    steps, n = len(result.losses["clip"]), len(sets[HELD_OUT])
    return report.page(
        "A toy CLIP and a toy classifier under shift",
        report.notice(
            f"<strong>{html.escape(TOY)}</strong> Both models saw the same {train_size:,} digits; "
            f"the other {n:,} were held out. CLIP learned from captions such as “{TEMPLATES[0].format('seven')}”, "
            "the classifier from class labels."
        ),
        {
            "Pictures": [_gallery(heads, data, sets)],
            "Accuracy": [report.side_by_side(_accuracy_table(result.accuracy, n), _accuracy_figure(result.accuracy))],
            **{section.title: section.blocks for section in _analyses(result)},
            "Similarity of the representations": [_cka_table(result.cka)],
            "Training": [report.side_by_side(*(_training_figure(x, result.losses[x]) for x in CONFIGS))],
            "Method": [_method(steps, train_size, n)],
            "Provenance": [
                report.provenance(
                    {
                        "Command": f"jaxclip quickstart --seed {seed}",
                        "Data": "scikit-learn's load_digits: the test set of UCI's Optical Recognition of Handwritten "
                        "Digits (Alpaydin and Kaynak 1998), 1,797 pictures",
                        "Seed": seed,
                        **report.environment(),
                    }
                )
            ],
        },
    )


def _gallery(heads: dict[str, Head], data: dict[str, dict[str, Labelled]], sets: dict[str, Images]) -> str:
    labels = data["clip"][HELD_OUT].labels
    rows: dict[str, list[str]] = {pictures: [] for pictures in sets}
    for pictures, images in sets.items():
        for i in (int(np.flatnonzero(labels == digit)[0]) for digit in range(len(CLASSNAMES))):
            chosen = {n: int(np.argmax(head.W @ data[n][pictures].h[i] + head.b)) for n, head in heads.items()}
            note = "".join(
                f'<span class="key-{k}{"" if c == labels[i] else " wrong"}">{c}</span>'
                for k, c in enumerate(chosen.values(), 1)
            )
            said = ", ".join(f"{LABELS[name]}: {CLASSNAMES[c]}" for name, c in chosen.items())
            rows[pictures].append(report.picture(images[i], f"A {CLASSNAMES[labels[i]]}, {pictures}. {said}.", note))
    left, right = (f'<strong class="key-{k}">{LABELS[name]}</strong>' for k, name in enumerate(heads, 1))
    return report.gallery(
        rows,
        "The first held-out picture of each digit, and the same pictures under each shift, as the models see them "
        f"(32x32 pixels). Below each: what {left} (left) and {right} (right) read, mistakes struck through.",
    )


def _accuracy_table(accuracy: dict[str, dict[str, Accuracy]], n: int) -> str:
    rows: list[list[report.Cell]] = [
        [pictures, *(estimate(x[pictures]) for x in accuracy.values())] for pictures in accuracy["clip"]
    ]
    return report.table(
        ["Pictures", *(LABELS[name] for name in accuracy)],
        rows,
        f"Share of {n:,} digits read rightly, with its 95 % Wilson interval. The interval is over pictures alone: "
        "another seed trains other models, and moves the numbers further.",
        "quickstart-accuracy",
        formats={LABELS[name]: ".1%" for name in accuracy},
    )


def _accuracy_figure(accuracy: dict[str, dict[str, Accuracy]]) -> str:
    sets = list(accuracy["clip"])
    with report.style():
        fig = Figure(figsize=(report.COLUMN, 2.6))
        ax = fig.subplots()
        for name, dy in zip(accuracy, (-0.13, 0.13), strict=True):
            a = list(accuracy[name].values())
            value, low, high = (np.array([100 * getattr(x, field) for x in a]) for field in ("value", "low", "high"))
            ax.errorbar(
                value,
                np.arange(len(sets)) + dy,
                xerr=(value - low, high - value),
                fmt="o",
                elinewidth=1,
                label=LABELS[name],
            )
        ax.axvline(10, color=report.MUTED, linewidth=0.8, linestyle=(0, (3, 2)), label="chance")
        ax.set(xlim=(0, 102), xlabel="accuracy, %", yticks=range(len(sets)), yticklabels=sets)
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
        ax.tick_params(axis="y", length=0)
        fig.legend(loc="outside upper left", ncols=3, handletextpad=0.4, columnspacing=1.2)
        worst = {name: min(x, key=lambda s: x[s].value) for name, x in accuracy.items()}
        alt = "; ".join(
            f"{LABELS[name]}: {100 * x[HELD_OUT].value:.0f} % on held-out digits, least on {worst[name]} "
            f"({100 * x[worst[name]].value:.0f} %)"
            for name, x in accuracy.items()
        )
        return report.figure(fig, "Accuracy, with 95 % Wilson intervals.", f"Accuracy. {alt}.", "quickstart-accuracy")


def _analyses(result: Quickstart) -> list[Section]:
    """What a report on real models says too, of the toy."""
    groups, about = {label: label for label in LABELS.values()}, dict.fromkeys(LABELS.values(), ())
    activations, directions = _by_label(result.activations), _by_label(result.directions)
    pruned, concepts = _by_label(result.pruned), _by_label(result.concepts)
    shifts = list(SHIFTS)
    on = "Of the toy models, on the held-out toy digits."
    kurtosis = Section(
        "Outlier features", [f"<p>{on} The paper finds kurtosis far above 3 in robust CLIPs; a toy need not.</p>"]
    )
    kurtosis_table(kurtosis, activations, about)
    outlier_table(kurtosis, activations)
    importance = Section("Privileged directions", [f"<p>{on}</p>"])
    importance_figure(importance, directions, groups)
    importance_table(importance, directions, activations, about)
    pruning = Section("Pruning the head", [f"<p>{on} Their heads have ten directions, as many as digits.</p>"])
    pruning_figure(pruning, HELD_OUT, shifts, pruned, groups, {})
    for label, found in pruned.items():
        pruning_table(pruning, HELD_OUT, shifts, {label: found}, {})
    encoded = Section("Concepts", [f"<p>{on} A picture is called by its digit and its number.</p>"])
    concept_table(encoded, concepts, about)
    concept_figure(encoded, concepts, groups)
    best_concepts_table(encoded, concepts)
    encoded.text(_concept_table(result.concepts))
    return [kurtosis, importance, pruning, encoded]


def _by_label(found: Mapping[str, T]) -> dict[str, T]:
    return {LABELS[name]: x for name, x in found.items()}


def _concept_table(found: dict[str, ConceptSummary]) -> str:
    best = [{b["concept"]: b["average_precision"] for b in c.best} for c in found.values()]
    return report.table(
        ["Concept", "Digits", *(LABELS[name] for name in found)],
        [
            [concept, ", ".join(map(str, digits)), *(ap.get(concept) for ap in best)]
            for concept, digits in CONCEPTS.items()
        ],
        "The average precision of the best direction of the head at each concept; a dash where none encodes it.",
        "quickstart-concepts",
        formats={LABELS[name]: ".3f" for name in found},
    )


def _cka_table(cka: dict[str, float]) -> str:
    return report.table(
        ["Pictures", "Linear CKA"],
        [[pictures, value] for pictures, value in cka.items()],
        "Linear CKA between the toy CLIP's and the toy classifier's representations of the same pictures: 1 when they "
        "differ by a rotation, a scale and a shift.",
        "quickstart-cka",
        formats={"Linear CKA": ".3f"},
    )


def _training_figure(name: str, losses: Float[np.ndarray, " steps"]) -> str:
    loss = {"clip": "symmetric contrastive loss, nats", "supervised": "cross-entropy, nats"}[name]
    color = report.SERIES[list(CONFIGS).index(name)]
    window = max(1, len(losses) // 20)
    smooth = np.convolve(losses, np.full(window, 1 / window), mode="valid")
    with report.style():
        fig = Figure(figsize=(report.COLUMN, 2.1))
        ax = fig.subplots()
        ax.plot(losses, color=color, linewidth=0.6, alpha=0.35)
        ax.plot(np.arange(len(smooth)) + (window - 1) / 2, smooth, color=color)
        ax.set(xlabel="step", ylabel=loss, ylim=(0, None), xlim=(0, len(losses)), title=LABELS[name])
        return report.figure(
            fig,
            f"Training loss on each batch, and its mean over {window} steps. Zero is the least that it can be.",
            f"{LABELS[name]}: the {loss.removesuffix(', nats')} falls from {smooth[0]:.2f} to {smooth[-1]:.2f} in "
            f"{len(losses)} steps.",
            f"quickstart-training-{name}",
        )


def _method(steps: int, train_size: int, n: int) -> str:
    shifts = "".join(f"<li><strong>{name}</strong>: {_first_line(f)}</li>" for name, f in SHIFTS.items())
    templates = "; ".join(f"“{t}”" for t in TEMPLATES)
    return f"""
<p>Data: {_first_line(digits)} Training draws {steps:,} batches of {BATCH} from the {train_size:,}, each digit moved by
up to 3 pixels, with Adam; the {n:,} held-out digits are seen once, at the end.</p>
<p>Models: one backbone, a ViT of {_VISION.layers} blocks, width {_VISION.width}, patches of {_VISION.patch_size}
pixels. The CLIP adds a projection to {_TEXT.output_dim} features and a text tower of {_TEXT.layers} blocks over CLIP's
full vocabulary; the classifier adds a linear head.</p>
<p>CLIP's loss is symmetric and contrastive. With ten classes many captions of a batch say the same, so all pairs of the
same digit are positives with equal weight (UniCL, Yang et al. 2022), where CLIP takes only the diagonal. Captions are
{html.escape(templates)}.</p>
<p>“Zero-shot head” says how the head is made: the mean of the class's caption embeddings over the templates. All ten
digits, and all templates, were in the training captions.</p>
<p>Shifts, each seeded and applied to the same held-out digits; neither model saw one in training:</p>
<ul>{shifts}</ul>
"""


def _first_line(function: Callable) -> str:
    return html.escape((function.__doc__ or "").partition("\n")[0])
