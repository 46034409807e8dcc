"""The three kinds of run, from data to a checkpoint: fine-tuning, supervised from scratch, CLIP from captions."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array

import jaxclip
from jaxclip import checkpoint
from jaxclip.config import ModelConfig
from jaxclip.data import imagenet_templates
from jaxclip.datasets import Source
from jaxclip.errors import InputError
from jaxclip.evaluation import evaluate, label_space
from jaxclip.mesh import together
from jaxclip.model import Model
from jaxclip.models import clip
from jaxclip.training import recipe as recipes
from jaxclip.training.augment import make_mix
from jaxclip.training.data import Captions, caption_batches, class_batches
from jaxclip.training.loop import SCORE, Schedule, Trained, fit
from jaxclip.training.objectives import Classes, ImageText
from jaxclip.training.optimizer import make_optimizer
from jaxclip.training.recipe import Recipe
from jaxclip.training.state import Objective, make_step
from jaxclip.zero_shot import zero_shot_head

LAST, BEST, ZERO_SHOT, RUN, SNAPSHOTS = "last", "best", "zero_shot", "run", "snapshots"
Mode = Literal["full", "lp-ft", "head"]


def finetune(
    model: str | os.PathLike,
    source: Source,
    out: str | os.PathLike,
    recipe: Recipe,
    *,
    mode: Mode = "full",
    probe_epochs: float = 1.0,
    classes: Sequence[str] | Mapping[str, str] | None = None,
    templates: Sequence[str] | None = None,
    validation: Source | None = None,
    workers: int | None = None,
    tensorboard: bool = False,
) -> Path:
    """Fine-tunes a CLIP's image encoder, with a linear head that begins as the zero-shot head.

    The head reads the representation scaled to length one, times the CLIP's logit scale, and has no bias (Wortsman et
    al. 2022, ``ImageClassifier``). The scale is folded into the head, and since no choice depends on the length, what
    is written is a plain classifier. ``out`` gets the checkpoints ``zero_shot`` (what it began as; one end of WiSE-FT),
    ``last``, and ``best`` where there is validation data; and the runs' own folders.

    Args:
        model: A CLIP's checkpoint folder.
        source: Training data.
        out: The folder to write; a run that is there goes on.
        recipe: How.
        mode: ``full``: end to end. ``lp-ft``: first the head alone, then end to end (Kumar et al. 2022). ``head``: the
            head alone.
        probe_epochs: How long the head is trained alone in ``lp-ft``.
        classes: As in :func:`jaxclip.evaluation.evaluate`.
        templates: Prompts of the zero-shot head; None means ImageNet's 80.
        validation: Data to choose the best by, of the same classes.
        workers: Processes that decode.
        tensorboard: Write its events.

    Returns:
        The folder of the last checkpoint.

    Raises:
        InputError: The model is no CLIP, a class has no name, or what :func:`~jaxclip.training.loop.fit` raises.
    """
    out = Path(out)
    names, answers, _ = label_space(source, classes)
    labels = _one_each(source, answers)
    config = checkpoint.read_config(model)
    name = config.name
    if config.text is None:
        raise InputError(f"{model} is a classifier: fine-tuning from the zero-shot head needs a CLIP")
    what = {"finetune": str(model), "mode": mode, "probe_epochs": probe_epochs, "recipe": recipe}
    _record(out, what | {"data": source.fingerprint(), "classes": names})
    with together("write the zero-shot head"):
        if jax.process_index() == 0 and not (out / ZERO_SHOT).exists():
            _write_zero_shot(model, out / ZERO_SHOT, names, imagenet_templates() if templates is None else templates)
    start = out / ZERO_SHOT
    phases = {"full": ["full"], "lp-ft": ["head", "full"], "head": ["head"]}[mode]
    for number, phase in enumerate(phases):
        config, module = _restore(start, recipe)
        config = dataclasses.replace(config, name=f"{name}-finetuned")
        epochs = probe_epochs if number + 1 < len(phases) else recipe.epochs
        mix = make_mix(recipe.augment)
        objective = Classes(config.preprocess.mean, config.preprocess.std, recipe.label_smoothing, True, mix)
        trainable: Callable[[str], bool] = (
            (lambda name: name == "head.kernel") if phase == "head" else lambda name: name != "head.bias"
        )
        trained = _train(
            module, config, objective, trainable, _relabelled(source, labels), out / f"{RUN}-{phase}", recipe,
            epochs=epochs, score=_scorer(config, module, validation, classes), workers=workers,
            tensorboard=tensorboard,
        )  # fmt: skip
        if number + 1 < len(phases):
            start = out / "probe"
            _write(start, config, trained.last)
    return _finish(out, config, trained)


def supervised(
    config: ModelConfig,
    source: Source,
    out: str | os.PathLike,
    recipe: Recipe,
    *,
    validation: Source | None = None,
    workers: int | None = None,
    tensorboard: bool = False,
) -> Path:
    """Trains a classifier from scratch. ``out`` gets the checkpoints ``last`` and, with validation data, ``best``.

    Args:
        config: The architecture; its number of classes becomes the data's.
        source: Training data.
        out: The folder to write; a run that is there goes on.
        recipe: How.
        validation: Data to choose the best by.
        workers: Processes that decode.
        tensorboard: Write its events.

    Raises:
        InputError: ``config`` is a CLIP, or what :func:`~jaxclip.training.loop.fit` raises.
    """
    if config.text is not None:
        raise InputError(f"{config.name} is a CLIP: it is trained from captions, by `jaxclip train clip`")
    out = Path(out)
    config = dataclasses.replace(config, num_classes=len(source.classes), source=_provenance(source))
    _record(out, {"supervised": config.to_json(), "recipe": recipe, "data": source.fingerprint()})
    module = _build(config, recipe)
    objective = Classes(
        config.preprocess.mean, config.preprocess.std, recipe.label_smoothing, False, make_mix(recipe.augment)
    )
    trained = _train(
        module, config, objective, lambda name: True, source, out / RUN, recipe,
        score=_scorer(config, module, validation, None), workers=workers, tensorboard=tensorboard,
    )  # fmt: skip
    return _finish(out, config, trained)


def from_captions(
    config: ModelConfig,
    captions: Captions,
    out: str | os.PathLike,
    recipe: Recipe,
    *,
    start: str | os.PathLike | None = None,
    validation: Source | None = None,
    workers: int | None = None,
    tensorboard: bool = False,
) -> Path:
    """Trains a CLIP from captions. ``out`` gets the checkpoints ``last`` and, with validation data, ``best``.

    Args:
        config: The architecture. For the sigmoid loss it has a logit bias.
        captions: Training data.
        out: The folder to write; a run that is there goes on.
        recipe: How.
        start: A checkpoint to begin with, of the same architecture; None is a fresh model.
        validation: Labelled data, whose zero-shot accuracy chooses the best.
        workers: Processes that decode.
        tensorboard: Write its events.

    Raises:
        InputError: ``config`` is a classifier, or what :func:`~jaxclip.training.loop.fit` raises.
    """
    if config.text is None:
        raise InputError(f"{config.name} is a classifier: it is trained from labels, by `jaxclip train supervised`")
    if recipe.loss == "sigmoid" and not config.logit_bias:
        config = dataclasses.replace(config, logit_bias=True)
    out = Path(out)
    config = dataclasses.replace(config, source=_provenance(captions.source))
    what = {"clip": config.to_json(), "start": None if start is None else str(start), "recipe": recipe}
    _record(out, what | {"data": captions.source.fingerprint()})
    module: Any = _build(config, recipe) if start is None else _restore(start, recipe)[1]
    objective = ImageText(config.preprocess.mean, config.preprocess.std, recipe.loss)
    trained = _train(
        module, config, objective, lambda name: True, captions, out / RUN, recipe,
        score=_scorer(config, module, validation, None), workers=workers, tensorboard=tensorboard,
    )  # fmt: skip
    return _finish(out, config, trained)


# --- pieces ----------------------------------------------------------------------------------------------------------


def _train(
    module: clip.CLIP | clip.Classifier,
    config: ModelConfig,
    objective: Objective,
    trainable: Callable[[str], bool],
    data: Source | Captions,
    out: Path,
    recipe: Recipe,
    *,
    epochs: float | None = None,
    score: Callable[[Mapping[str, Array]], Mapping[str, float]] | None,
    workers: int | None,
    tensorboard: bool,
) -> Trained:
    pictures = len(data.source if isinstance(data, Captions) else data)
    steps, cfg = recipe.steps(pictures, epochs), recipe.optimizer
    step = make_step(
        module,
        objective,
        lambda params: make_optimizer(cfg, max(1, steps // cfg.accumulate), params),
        trainable=trainable,
        ema_decay=cfg.ema_decay,
        accumulate=cfg.accumulate,
    )
    common: dict[str, Any] = {"seed": recipe.seed, "workers": workers}
    pixels, augment, size = config.preprocess, recipe.augment, recipe.batch_size
    if isinstance(data, Captions):
        assert config.text is not None
        batches = caption_batches(data, pixels, augment, size, context_length=config.text.context_length, **common)
    else:
        batches = class_batches(data, pixels, augment, size, **common)
    schedule = Schedule(steps, recipe.steps(pictures, recipe.save), recipe.log)

    def keep(number: int, arrays: Mapping[str, Array]) -> None:
        name = f"step_{number:06}"
        _write(out.parent / SNAPSHOTS / name, dataclasses.replace(config, name=f"{config.name}-{name}"), arrays)

    return fit(
        step, batches, out, schedule, seed=recipe.seed, score=score, keep=keep if recipe.snapshots else None,
        tensorboard=tensorboard,
    )  # fmt: skip


def _build(config: ModelConfig, recipe: Recipe) -> clip.CLIP | clip.Classifier:
    return clip.build(config, rngs=nnx.Rngs(recipe.seed), dtype=jax.numpy.dtype(recipe.dtype), remat=recipe.remat)


def _restore(path: str | os.PathLike, recipe: Recipe) -> tuple[ModelConfig, clip.CLIP | clip.Classifier]:
    return checkpoint.restore(path, dtype=jax.numpy.dtype(recipe.dtype), remat=recipe.remat)


def _record(out: Path, what: dict[str, Any]) -> None:
    with together("begin the run"):
        if jax.process_index() == 0:
            recipes.record(out, what)


def _write(folder: Path, config: ModelConfig, arrays: Mapping[str, Any]) -> None:
    with together(f"write {folder}"):
        if jax.process_index() == 0:
            checkpoint.save(folder, config, {name: np.asarray(a) for name, a in arrays.items()}, overwrite=True)


def _finish(out: Path, config: ModelConfig, trained: Trained) -> Path:
    _write(out / LAST, config, trained.last)
    if trained.best is not None:
        _write(out / BEST, config, trained.best)
    return out / LAST


def _provenance(source: Source) -> dict[str, Any]:
    return {"trained_on": source.name, "fingerprint": source.fingerprint(), "jaxclip": jaxclip.__version__}


def _scorer(
    config: ModelConfig,
    module: clip.CLIP | clip.Classifier,
    validation: Source | None,
    classes: Sequence[str] | Mapping[str, str] | None,
) -> Callable[[Mapping[str, Array]], Mapping[str, float]] | None:
    """Accuracy on the validation data. One ``Model`` serves every time, so nothing is compiled twice.

    Of several processes each evaluates all of it, by itself: they agree without a word.
    """
    if validation is None:
        return None
    model = Model(config, module)
    shapes = jax.eval_shape(lambda x: x, model.params)

    def score(arrays: Mapping[str, Array]) -> Mapping[str, float]:
        if jax.process_count() > 1:
            arrays = {name: array.addressable_data(0) for name, array in arrays.items()}
        model.params = checkpoint.fill(shapes, arrays)
        result = evaluate(model, validation, classes=classes)
        return {SCORE: result.top1.value, "top1": result.top1.value, "top5": result.top5.value}

    return score


def _write_zero_shot(model: str | os.PathLike, out: Path, names: Sequence[str], templates: Sequence[str]) -> None:
    """The classifier that chooses as the CLIP does with its zero-shot head."""
    config, module = checkpoint.restore(model)
    loaded = Model(config, module)
    W, scale = zero_shot_head(loaded, names, templates), loaded.logit_scale
    assert scale is not None
    vision = {name: a for name, a in checkpoint.named(loaded.params).items() if name.startswith("vision.")}
    head = {"head.kernel": np.asarray(scale * W.T), "head.bias": np.zeros(len(names), np.float32)}
    config = dataclasses.replace(
        config,
        name=f"{config.name}-zero-shot",
        text=None,
        logit_bias=False,
        num_classes=len(names),
        source={**config.source, "zero_shot_head": f"{len(names)} classes, {len(templates)} templates"},
    )
    checkpoint.save(out, config, vision | head)


def _one_each(source: Source, answers: np.ndarray) -> np.ndarray:
    """The one name that each label of the training data is."""
    several = np.flatnonzero(answers.sum(axis=1) != 1)
    if several.size:
        raise InputError(
            f"{source.name}: class {source.classes[several[0]]!r} is not one of the head's classes, so it cannot be "
            "trained on"
        )
    return answers.argmax(axis=1)


@dataclasses.dataclass(frozen=True)
class _Relabelled:
    """A source whose labels index the head's classes."""

    source: Source
    labels: np.ndarray
    name: str
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int):
        example = self.source[index]
        return example._replace(label=int(self.labels[example.label]) if example.label >= 0 else -1)

    def fingerprint(self) -> str:
        return self.source.fingerprint()


def _relabelled(source: Source, labels: np.ndarray) -> Source:
    if np.array_equal(labels, np.arange(len(labels))):
        return source
    return _Relabelled(source, labels, source.name, source.classes)
