"""Accuracy of a model on a labelled data set: top-1, top-5, per class, with confidence intervals."""

import csv
import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

import jaxclip
from jaxclip import loader
from jaxclip.config import check_batch_size
from jaxclip.data import imagenet_classnames, imagenet_templates, imagenet_wnids
from jaxclip.datasets import FileSource, Source, class_subset, label_map, open_source
from jaxclip.datasets.source import unknown
from jaxclip.errors import InputError
from jaxclip.files import check_folder, new_file
from jaxclip.loader import BadImage, Batch
from jaxclip.mesh import batch_sharding, whole_batch
from jaxclip.model import Model
from jaxclip.models.clip import representation_size
from jaxclip.progress import progress
from jaxclip.store import Representations, check_bad, find
from jaxclip.zero_shot import zero_shot_head

JSON, CSV = "evaluation.json", "per_class.csv"
Head = Float[Array, "c d"] | Float[np.ndarray, "c d"]
Bias = Float[Array, " c"] | Float[np.ndarray, " c"]


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """A share of pictures, from 0 to 1, and its 95 % Wilson score interval (Wilson 1927)."""

    right: int
    total: int
    value: float
    low: float
    high: float

    @classmethod
    def of(cls, right: int, total: int) -> "Accuracy":
        """``right`` of ``total`` pictures, of which there must be one at least."""
        from scipy.stats import binomtest

        interval = binomtest(right, total).proportion_ci(confidence_level=0.95, method="wilson")
        return cls(right, total, right / total, float(interval.low), float(interval.high))


@dataclasses.dataclass(frozen=True)
class ClassAccuracy:
    """How many of one class's pictures are right, by the first choice and among the first five.

    Attributes:
        label: The class as the data calls it (a WNID, a folder).
        name: The choices that are right, as the head calls them.
        total: Pictures.
        top1: Of these, right by the first choice.
        top5: Of these, with a right class among the first five.
    """

    label: str
    name: str
    total: int
    top1: int
    top5: int


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` finds.

    Attributes:
        top1: Accuracy of the first choice.
        top5: Share of pictures with a right class among the first five choices (of all, where there are fewer).
        per_class: One for each class that has pictures, in the order of the data's labels.
        bad_images: The pictures that could not be decoded, which no number counts.
        model: Provenance of the model: its name and where its weights are from.
        data: Provenance of the data: name, fingerprint, number of pictures; the subset whose pictures count, if named.
        head: What the head is: of the model, from text, or given; the classes that it chooses between.
        jaxclip: The version of the tool.
        stored: Where the representations were read from; None where the pictures were.
    """

    top1: Accuracy
    top5: Accuracy
    per_class: tuple[ClassAccuracy, ...]
    bad_images: tuple[BadImage, ...]
    model: dict[str, Any]
    data: dict[str, Any]
    head: dict[str, Any]
    jaxclip: str = jaxclip.__version__
    stored: str | None = None

    def save(self, folder: str | os.PathLike) -> None:
        """Writes ``evaluation.json`` (all of this) and ``per_class.csv`` (accuracy of each class), both or none."""
        with (
            new_file(Path(folder) / JSON) as json_file,
            new_file(Path(folder) / CSV, newline="") as csv_file,
        ):
            json.dump(dataclasses.asdict(self), json_file, indent=2)
            json_file.write("\n")
            table = csv.writer(csv_file)
            table.writerow(["label", "name", "images", "top1", "top5"])
            for c in self.per_class:
                table.writerow([c.label, c.name, c.total, c.top1 / c.total, c.top5 / c.total])
            for file in (json_file, csv_file):  # before either has its name: the disk may be full
                file.flush()
                os.fsync(file.fileno())


@functools.partial(jax.jit, static_argnames="k")
def top_k_hits(
    h: Float[Array, "n d"],
    W: Float[Array, "c d"],
    b: Float[Array, " c"],
    labels: Int[Array, " n"],
    answers: Bool[Array, "l c"],
    k: int = 5,
) -> Bool[Array, "n k"]:
    """Whether a right class is among the first 1, 2, … k choices of the linear head.

    Of classes with the same logit the first is chosen first, as ``argmax`` does.

    Args:
        h: Representations.
        W: The head, restricted to the classes that may be chosen.
        b: Its bias.
        labels: The label of each row of ``h``.
        answers: Which classes are right for each label; a label may have several.
        k: At most c.
    """
    logits = jnp.matmul(h, W.T, precision="highest") + b
    _, choices = jax.lax.top_k(logits, k)
    right = jnp.take_along_axis(answers[labels], choices, axis=1)
    return jnp.cumsum(right, axis=1) > 0


def representations(
    model: Model,
    source: Source,
    *,
    batch_size: int = 64,
    workers: int | None = None,
    indices: Sequence[int] | Int[np.ndarray, " n"] | None = None,
    skip_bad: bool = False,
) -> Iterator[tuple[Float[Array, "b d"], Batch]]:
    """h(x) of every picture in order, in padded batches: rows with ``batch.mask`` False are to be left out.

    The next batch is already on the device, and under way, while the caller reads one.

    Args:
        model: The encoder.
        source: The pictures.
        batch_size: Rows of a batch, rounded up to a multiple of the devices that the parameters are on.
        workers: As in :func:`jaxclip.loader.batches`.
        indices: As in :func:`jaxclip.loader.batches`.
        skip_bad: As in :func:`jaxclip.loader.batches`.

    Raises:
        InputError: A picture cannot be decoded, and ``skip_bad`` is false.
    """
    sharding = batch_sharding(model.params)
    batch_size = whole_batch(batch_size, sharding)
    before = None
    for batch in loader.batches(
        source, model.config.preprocess, batch_size, workers=workers, indices=indices, skip_bad=skip_bad
    ):
        now = model.encode_image(jax.device_put(batch.images, sharding)), batch
        if before is not None:
            yield before
        before = now
    if before is not None:
        yield before


def evaluate(
    model: Model,
    source: Source | str | os.PathLike,
    *,
    head: Head | tuple[Head, Bias] | None = None,
    classes: Sequence[str] | Mapping[str, str] | None = None,
    templates: Sequence[str] | None = None,
    subset: str | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    skip_bad: bool = False,
    store: str | os.PathLike | None = None,
    out: str | os.PathLike | None = None,
) -> Evaluation:
    """Measures a model's accuracy on a labelled data set.

    Args:
        model: A CLIP, which chooses by its zero-shot head, or a classifier, by its own.
        source: The pictures, or what :func:`jaxclip.datasets.open_source` opens: a folder, a tar, a data set's name.
        head: W, or (W, b), to choose by in place of the model's own.
        classes: What to choose between: names among which the data's classes are; or, from each of the data's classes,
            the name that prompts call it. None means ImageNet's 1,000 where the data's labels are WNIDs, else the
            data's own classes.
        templates: Prompts of the zero-shot head; None means ImageNet's 80.
        subset: Choose only between the ImageNet classes of a shift set (``imagenet_a``, ``imagenet_r``, ``objectnet``),
            and leave out pictures of other classes. None means the source's own, which are all 1,000 where it is not
            one of these; then a picture of another class is an error.
        batch_size: Pictures that go through the model at once. The last batch is padded: there is one compilation.
        workers: As in :func:`jaxclip.loader.batches`.
        skip_bad: Leave out pictures that cannot be decoded, and list them in the result.
        store: A store of :func:`jaxclip.embed`; where the representations are in it, no picture is read.
        out: A folder to save the result to, see :meth:`Evaluation.save`.

    Raises:
        InputError: A class of the data is none of ``classes``, the head has another number of classes, a picture has no
            label, no picture is left, one cannot be decoded (and ``skip_bad`` is false), a representation is not
            finite, or there is no folder ``store``.
    """
    if isinstance(source, str | os.PathLike):
        source = open_source(source)
    check_batch_size(batch_size)
    if out is not None:
        check_folder(out)
    stored = None if store is None else find(store, model, source)
    if stored is not None:
        check_bad(stored, skip_bad)
    names, answers, columns = label_space(source, classes, subset)
    W, b, described = _head(model, head, source, names, columns, templates)
    choices = answers[:, columns]
    answered, on_device, k = np.any(choices, axis=1), jnp.asarray(choices), min(5, len(columns))
    total = np.zeros(len(source.classes), int)
    right = np.zeros((len(source.classes), k), int)
    bad: list[BadImage] = []
    found: Iterator[tuple[Any, Batch]]
    indices: Sequence[int] = range(len(source))
    if stored is None:
        if subset is not None:
            indices = [i for i in indices if _may_count(source, i, answered)]
        found = representations(
            model, source, batch_size=batch_size, workers=workers, indices=indices, skip_bad=skip_bad
        )
    else:
        found = _stored(stored, batch_size)
        bad += [b for b in stored.bad_images if subset is None or _may_count(source, b.index, answered)]
    with progress(f"{model.config.name} on {source.name}", len(indices)) as advance:
        for h, batch in found:
            advance(len(batch.ids))
            if subset is not None:
                batch = batch._replace(mask=batch.mask & ((batch.labels < 0) | answered[batch.labels]))
            _check_labels(source, batch, answered, hint=classes is None)
            _check_finite(source, batch, h)
            hits = np.asarray(top_k_hits(h, W, b, batch.labels, on_device, k=k))
            np.add.at(total, batch.labels[batch.mask], 1)
            np.add.at(right, batch.labels[batch.mask], hits[batch.mask])
            bad += batch.bad
    if not total.any():
        where = "" if subset is None else f" and is of a class of {subset}"
        raise InputError(f"{source.name} has no picture that can be decoded{where} (of {len(source)})")
    result = Evaluation(
        top1=Accuracy.of(int(right[:, 0].sum()), int(total.sum())),
        top5=Accuracy.of(int(right[:, -1].sum()), int(total.sum())),
        per_class=tuple(
            ClassAccuracy(
                source.classes[label],
                " or ".join(names[i] for i in np.flatnonzero(answers[label])),
                *map(int, (total[label], right[label, 0], right[label, -1])),
            )
            for label in np.flatnonzero(total)
        ),
        bad_images=tuple(bad),
        model={"name": model.config.name, "source": model.config.source, "dtype": str(model.dtype)},
        data={"name": source.name, "images": len(source), "fingerprint": source.fingerprint(), "subset": subset},
        head=described,
        stored=None if stored is None else str(stored.folder),
    )
    if out is not None:
        result.save(out)
    return result


def _stored(stored: Representations, batch_size: int) -> Iterator[tuple[Float[np.ndarray, "b d"], Batch]]:
    """What :func:`representations` gives, without the pictures."""
    for rows, h in stored.batches(batch_size):
        padding = batch_size - len(h)
        labels, indices = (
            np.pad(column[rows], (0, padding), constant_values=-1) for column in (stored.labels, stored.indices)
        )
        no_images = np.empty((batch_size, 0, 0, 3), np.uint8)
        batch = Batch(no_images, labels, indices, indices >= 0, stored.ids[rows], ())
        yield np.pad(h.astype(np.float32), ((0, padding), (0, 0))), batch


def label_space(
    source: Source, classes: Sequence[str] | Mapping[str, str] | None = None, subset: str | None = None
) -> tuple[list[str], Bool[np.ndarray, "l c"], Int[np.ndarray, " m"]]:
    """What a model chooses between on a data set, and which choices are right.

    Args:
        source: The data set, with l classes.
        classes: As in :func:`evaluate`.
        subset: As in :func:`evaluate`.

    Returns:
        The names of c classes; for each label of the source, which of them are right; and the m of them that may be
        chosen.

    Raises:
        InputError: The source has no labels, one of its classes is none of the names, or ``subset`` is no shift set.
    """
    if not source.classes:
        raise InputError(f"{source.name} has no labels, and accuracy needs them: put the pictures in class folders")
    wnids = list(source.classes) == imagenet_wnids()
    mapped = {} if wnids else label_map(source.name)
    if mapped and (strange := [name for name in source.classes if name not in mapped]) and classes is None:
        raise InputError(
            f"{source.name}: {strange[0]!r} is none of its labels: prepare the published archive with "
            "`jaxclip datasets prepare objectnet`, or name the folder otherwise"
        )
    imagenet = bool(mapped) or wnids
    rows: Sequence[Any] = range(len(source.classes))
    if classes is not None:
        names, rows = _match(source, classes)
    elif imagenet:
        names, rows = imagenet_classnames(), [mapped.get(name, np.array(i)) for i, name in enumerate(source.classes)]
    else:
        names = list(source.classes)
    answers = np.zeros((len(source.classes), len(names)), bool)
    for label, row in enumerate(rows):
        if row is not None:
            answers[label, row] = True
    allowed = None
    if imagenet and classes is None:
        allowed = class_subset(subset or source.name)
    if subset is not None and allowed is None:
        raise InputError(
            f"subset {subset!r} cannot be taken: it is imagenet_a, imagenet_r or objectnet, for data with ImageNet's "
            "labels and no classes of your own"
        )
    return names, answers, np.arange(len(names)) if allowed is None else allowed


def _match(source: Source, classes: Sequence[str] | Mapping[str, str]) -> tuple[list[str], list[int | None]]:
    """The names to choose between, and the row among them of each class of the source."""

    def plain(name: str) -> str:
        return str(int(name)) if name.isascii() and name.isdecimal() else name.replace("_", " ").casefold()

    if isinstance(classes, str) or not len(classes):
        raise InputError(
            f"classes are {classes!r}: give a list of names, or a mapping from the data's classes to names"
        )
    called = dict(classes) if isinstance(classes, Mapping) else {name: name for name in classes}
    names = list(dict.fromkeys(called.values()))
    alike: dict[str, list[str]] = {}
    for key in called:
        alike.setdefault(plain(key), []).append(key)

    def row(name: str) -> int | None:
        keys = [name] if name in called else alike.get(plain(name), [])
        if len({called[key] for key in keys}) > 1:
            raise InputError(f"{source.name}: class {name!r} may be {' or '.join(map(repr, keys))}: spell one as it is")
        return names.index(called[keys[0]]) if keys else None

    rows = [row(name) for name in source.classes]
    # ImageNet's classes, and numbers, are there whether or not they have pictures; folders are there because they have.
    if None in rows and list(source.classes) not in (imagenet_wnids(), list(map(str, range(len(rows))))):
        name = source.classes[rows.index(None)]
        raise unknown(f"{source.name}: class {name!r} is none of the {len(called)} given classes", name, called)
    return names, rows


def _head(
    model: Model,
    head: Head | tuple[Head, Bias] | None,
    source: Source,
    names: list[str],
    columns: Int[np.ndarray, " m"],
    templates: Sequence[str] | None,
) -> tuple[Float[Array, "m d"], Float[Array, " m"], dict[str, Any]]:
    """W and b of the classes that may be chosen, and what they are."""
    own = model.head
    kind = "given" if head is not None else "zero-shot" if own is None else "the model's own"
    described: dict[str, Any] = {"kind": kind, "classes": len(columns)}
    if head is None and own is None:
        templates = imagenet_templates() if templates is None else templates
        W = zero_shot_head(model, [names[i] for i in columns], templates)
        return W, jnp.zeros(len(W)), {**described, "templates": len(templates)}
    if templates is not None:
        raise InputError(f"templates are of no use to {model.config.name}, whose head is {kind}")
    chosen = own if head is None else head
    W, b = map(jnp.asarray, chosen) if isinstance(chosen, tuple) else (jnp.asarray(chosen), None)
    b = jnp.zeros(len(W)) if b is None else b
    if W.ndim != 2 or W.shape[1] != representation_size(model.config.vision):
        raise InputError(f"the head has shape {W.shape}, not [classes, {representation_size(model.config.vision)}]")
    if len(W) != len(names):
        few = ", ".join(map(repr, source.classes[:3]))
        raise InputError(
            f"the head of {model.config.name} chooses between {len(W)} classes, but {source.name} has {len(names)} "
            f"({few}, …): take data of the same classes, in folders named by WNID for an ImageNet model"
        )
    if b.shape != (len(W),):
        raise InputError(f"the head's bias has shape {b.shape}, not [{len(W)}]")
    finite = np.isfinite(np.asarray(W)).all(axis=1) & np.isfinite(np.asarray(b))
    if not finite.all():
        raise InputError(f"the head's row of class {names[np.flatnonzero(~finite)[0]]!r} is not finite")
    return W[columns], b[columns], described


def _may_count(source: Source, index: int, answered: Bool[np.ndarray, " l"]) -> bool:
    """Whether a picture is of a class that may be chosen, or has no label or cannot be read: others see to that."""
    try:
        label = int(source.labels[index]) if isinstance(source, FileSource) else source[index].label
    except (InputError, OSError):
        return True
    return label < 0 or bool(answered[label])


def _check_labels(source: Source, batch: Batch, answered: Bool[np.ndarray, " l"], *, hint: bool) -> None:
    """Raises an InputError where a picture's label is none, or has no right answer among the choices.

    The hint is that a subset of ImageNet's classes may be named.
    """
    for row in np.flatnonzero(batch.mask & ((batch.labels < 0) | ~answered[batch.labels])):
        label = batch.labels[row]
        trouble = (
            "has no label: accuracy needs one"
            if label < 0
            else f"is of class {source.classes[label]!r}, which is not to choose from"
            + (": --subset leaves such pictures out" if hint else ": name it among the classes")
        )
        raise InputError(f"{source.name}: picture {batch.ids[row]} {trouble}")


def _check_finite(source: Source, batch: Batch, h: Float[Any, "b d"]) -> None:
    """Raises an InputError where a representation has a NaN or infinite feature, which would count as wrong."""
    for row in np.flatnonzero(batch.mask & ~np.isfinite(np.asarray(h)).all(axis=1)):
        raise InputError(
            f"{source.name}: the representation of picture {batch.ids[row]} is not finite: compute in float32, or see "
            "whether the checkpoint is sound"
        )
