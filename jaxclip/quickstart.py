"""The quickstart: a toy CLIP and a toy classifier, trained on scikit-learn's handwritten digits and compared under shift.

It goes the whole way that real checkpoints go (towers, Orbax, ``load_model``, the zero-shot head, the analyses, the
report) with nothing to download. The training loop is deliberately small; nothing here says anything about the paper.
"""

import dataclasses
import functools
import html
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.table import Table
from scipy import ndimage
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from jaxclip import checkpoint, report
from jaxclip.config import ModelConfig, Preprocess, Text, ViT
from jaxclip.errors import InputError
from jaxclip.evaluation import Accuracy
from jaxclip.files import new_file
from jaxclip.model import Model, load_model
from jaxclip.models import clip
from jaxclip.preprocess import normalize
from jaxclip.progress import progress
from jaxclip.tokenizer import load_tokenizer
from jaxclip.zero_shot import zero_shot_head

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
HELD_OUT = "held-out"
STEPS, BATCH, LEARNING_RATE = 600, 64, 1e-3

_PIXELS = Preprocess(size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
_VISION = ViT(image_size=32, patch_size=8, width=64, layers=4, heads=2, mlp_width=256)
_TEXT = Text(context_length=16, vocab_size=49408, width=64, layers=2, heads=2, mlp_width=256, output_dim=64)
CONFIGS = {
    "clip": ModelConfig("quickstart-clip", dataclasses.replace(_VISION, output_dim=64), _PIXELS, text=_TEXT),
    "supervised": ModelConfig("quickstart-supervised", _VISION, _PIXELS, num_classes=len(CLASSNAMES)),
}
LABELS = {"clip": "CLIP, zero-shot head", "supervised": "Supervised"}


@dataclasses.dataclass(frozen=True)
class Quickstart:
    """What :func:`quickstart` finds.

    Attributes:
        accuracy: For each model (``clip``, ``supervised``) and each set of pictures (``held-out`` and the shifts).
        losses: The training loss of each model at each step.
        report: The page.
    """

    accuracy: dict[str, dict[str, Accuracy]]
    losses: dict[str, Float[np.ndarray, " steps"]]
    report: Path


def quickstart(out: str | os.PathLike = "quickstart", seed: int = 0, *, steps: int = STEPS) -> Quickstart:
    """Trains both models, evaluates them on held-out digits and on five shifts, prints a table, writes a report.

    The same seed gives the same numbers and the same report on the same machine.

    Args:
        out: The folder to write: checkpoints ``clip/`` and ``supervised/``, and ``report.html``. An earlier
            quickstart's are replaced.
        seed: Of the split, the initialisation, the batches and the shifts.
        steps: Of training, for each model.

    Raises:
        InputError: ``out`` is a file, or has a folder of one of these names that is no quickstart's.
    """
    out = Path(out)
    _check_free(out)
    console = Console()
    console.print(f"[bold yellow]{TOY}[/]")
    split_key, train_key, shift_key = jax.random.split(jax.random.key(seed), 3)
    (train_images, train_labels), (images, labels) = digits(split_key)

    captions = load_tokenizer(_TEXT.context_length)([t.format(name) for name in CLASSNAMES for t in TEMPLATES])
    captions = captions[:, : 1 + np.flatnonzero(captions.any(axis=0))[-1]].reshape(len(CLASSNAMES), len(TEMPLATES), -1)
    losses = {}
    for name, loss in (("clip", functools.partial(contrastive_loss, captions=captions)), ("supervised", class_loss)):
        model, losses[name] = train(
            CONFIGS[name], loss, train_images, train_labels, steps=steps, key=train_key, what=f"train {name}"
        )
        checkpoint.save(out / name, CONFIGS[name], checkpoint.named(model), overwrite=True)

    models = {name: load_model(out / name) for name in CONFIGS}
    sets = {HELD_OUT: images} | {
        name: shift(images, key)
        for (name, shift), key in zip(SHIFTS.items(), jax.random.split(shift_key, len(SHIFTS)), strict=True)
    }
    heads = {"clip": (zero_shot_head(models["clip"], CLASSNAMES, TEMPLATES), jnp.zeros(len(CLASSNAMES)))}
    heads["supervised"] = models["supervised"].head
    h = {name: {s: model.encode_image(x) for s, x in sets.items()} for name, model in models.items()}
    predicted = {
        name: {s: np.argmax(h[name][s] @ heads[name][0].T + heads[name][1], axis=1) for s in sets} for name in models
    }
    accuracy = {
        name: {s: Accuracy.of(int((p == labels).sum()), len(labels)) for s, p in by_set.items()}
        for name, by_set in predicted.items()
    }
    console.print(_console_table(accuracy))

    result = Quickstart(accuracy, losses, out / "report.html")
    with new_file(result.report) as file:
        file.write(_page(result, sets, labels, predicted, seed=seed, steps=steps, train_size=len(train_labels)))
    console.print(f"written: {result.report}, checkpoints {out / 'clip'} and {out / 'supervised'}")
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
    angles = jax.random.uniform(angle_key, len(images), minval=25, maxval=45)
    angles = np.asarray(angles * jax.random.rademacher(sign_key, len(images)), float)
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


# --- training --------------------------------------------------------------------------------------------------------


def train(
    config: ModelConfig,
    loss: Callable[[nnx.Module, Array, Array, Array], Float[Array, ""]],
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
        loss: From the model, normalised images, labels and a key.
        images: To train on.
        labels: Their classes.
        steps: How many batches.
        key: Of the initialisation and the batches.
        what: For the progress bar.

    Returns:
        The model, and the loss at each step.
    """
    init_key, step_key = jax.random.split(key)
    graph, params = nnx.split(nnx.jit(lambda rngs: clip.build(config, rngs=rngs))(nnx.Rngs(init_key)))
    schedule = optax.warmup_cosine_decay_schedule(0, LEARNING_RATE, steps // 10, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    pixels = config.preprocess

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, key):
        batch_key, shift_key, loss_key = jax.random.split(key, 3)
        batch = jax.random.choice(batch_key, len(images), (BATCH,), replace=False)
        shifts = jax.random.randint(shift_key, (BATCH, 2), -3, 4)  # the margin is 4: nothing comes in on the other side
        moved = jax.vmap(lambda image, shift: jnp.roll(image, shift, axis=(0, 1)))(images[batch], shifts)
        x = normalize(moved, pixels.mean, pixels.std)
        value, grads = jax.value_and_grad(lambda p: loss(nnx.merge(graph, p), x, labels[batch], loss_key))(params)
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
    image, text = model.encode_image(images)[0], model.encode_text(jnp.asarray(captions)[labels, templates])
    image, text = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    logits = jnp.exp(jnp.minimum(model.logit_scale[...], jnp.log(100.0))) * image @ text.T
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
        table.add_row(pictures, *(f"{100 * a.value:.1f} \\[{100 * a.low:.1f}, {100 * a.high:.1f}]" for a in cells))
    return table


def _page(
    result: Quickstart,
    sets: dict[str, Images],
    labels: Int[np.ndarray, " n"],
    predicted: dict[str, dict[str, Int[Array, " n"]]],
    *,
    seed: int,
    steps: int,
    train_size: int,
) -> str:
    n = len(labels)
    return report.page(
        "A toy CLIP and a toy classifier under shift",
        report.notice(
            f"<strong>{html.escape(TOY)}</strong> Both models saw the same {train_size:,} digits; "
            f"the other {n:,} were held out. CLIP learned from captions such as “{TEMPLATES[0].format('seven')}”, "
            "the classifier from class labels."
        ),
        {
            "Pictures": [_gallery(sets, labels, predicted)],
            "Accuracy": [
                report.side_by_side(
                    _accuracy_table(result.accuracy, n),
                    _accuracy_figure(result.accuracy),
                )
            ],
            "Training": [report.side_by_side(*(_training_figure(name, x) for name, x in result.losses.items()))],
            "Method": [_method(steps, train_size, n)],
            "Provenance": [
                report.provenance(
                    {
                        "Command": f"jaxclip quickstart --seed {seed}",
                        "Data": "scikit-learn's load_digits: the test set of UCI's Optical Recognition of Handwritten "
                        "Digits (Alpaydin and Kaynak 1998), 1,797 pictures; shipped with scikit-learn",
                        "Seed": seed,
                        **report.environment(),
                    }
                )
            ],
        },
    )


def _gallery(
    sets: dict[str, Images], labels: Int[np.ndarray, " n"], predicted: dict[str, dict[str, Int[Array, " n"]]]
) -> str:
    chosen = [int(np.flatnonzero(labels == digit)[0]) for digit in range(len(CLASSNAMES))]
    rows = {}
    for pictures, images in sets.items():
        rows[pictures.capitalize()] = []
        for i in chosen:
            answers = {name: int(p[pictures][i]) for name, p in predicted.items()}
            note = "".join(
                f'<span class="key-{k}{"" if a == labels[i] else " wrong"}">{a}</span>'
                for k, a in enumerate(answers.values(), 1)
            )
            said = ", ".join(f"{LABELS[name]}: {CLASSNAMES[a]}" for name, a in answers.items())
            rows[pictures.capitalize()].append(
                report.picture(images[i], f"A {CLASSNAMES[labels[i]]}, {pictures}. {said}.", note)
            )
    clip_key, supervised_key = (f'<span class="key-{k}">{LABELS[x]}</span>' for k, x in enumerate(CONFIGS, 1))
    return report.gallery(
        rows,
        "The first held-out picture of each digit, and the same pictures under each shift, as the models see them "
        f"(32x32 pixels). Below each, what {clip_key} (left) and {supervised_key} (right) read; mistakes are struck "
        "through.",
    )


def _accuracy_table(accuracy: dict[str, dict[str, Accuracy]], n: int) -> str:
    rows = [
        [pictures, *(report.Estimate(a.value, a.low, a.high) for a in (x[pictures] for x in accuracy.values()))]
        for pictures in accuracy["clip"]
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
                value, np.arange(len(sets)) + dy, xerr=(value - low, high - value), fmt="o", elinewidth=1, label=LABELS[name]
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
        ax.set(xlabel="step", ylabel=loss, ylim=(0, None), xlim=(0, len(losses)), title=LABELS[name].split(",")[0])
        return report.figure(
            fig,
            f"Training loss on each batch, and its mean over {window} steps. Zero is the least that it can be.",
            f"The {loss.removesuffix(', nats')} falls from {smooth[0]:.2f} to {smooth[-1]:.2f} in {len(losses)} steps.",
            f"quickstart-training-{name}",
        )


def _method(steps: int, train_size: int, n: int) -> str:
    shifts = "".join(f"<li><strong>{name}</strong>: {_first_line(f)}</li>" for name, f in SHIFTS.items())
    templates = "; ".join(f"“{t}”" for t in TEMPLATES)
    return f"""
<p>Data: {_first_line(digits)} Training draws {steps:,} batches of {BATCH} from the {train_size:,}, each digit moved by
up to 3 pixels, with Adam; the {n:,} held-out digits are seen once, at the end.</p>
<p>Models: one backbone, a ViT of {_VISION.layers} blocks, width {_VISION.width}, patches of {_VISION.patch_size} pixels.
The CLIP adds CLIP's layer norm before the first block, its projection to 64 features, and a text tower of
{_TEXT.layers} blocks over CLIP's full vocabulary; the classifier adds a linear head.</p>
<p>CLIP's loss is symmetric and contrastive. With ten classes many captions of a batch say the same, so all pairs of the
same digit are positives with equal weight (UniCL, Yang et al. 2022), where CLIP takes only the diagonal. Captions are
{html.escape(templates)}.</p>
<p>“Zero-shot head” is what the head is made of (the mean of the class's caption embeddings, over the same templates); the digits
themselves were all named in training.</p>
<p>Shifts, each seeded and applied to the same held-out digits; neither model saw one in training:</p>
<ul>{shifts}</ul>
"""


def _first_line(function: Callable) -> str:
    return html.escape((function.__doc__ or "").partition("\n")[0])
