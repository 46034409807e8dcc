"""Every analysis of one model, from its stored representations: as pieces, which the experiments share, and at once.

Each piece is a frozen dataclass of plain numbers, lists and strings, which goes to JSON and back by its fields.
"""

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

import jaxclip
from jaxclip.accuracies import standard_models
from jaxclip.analysis import (
    SHIFTS,
    ActivationStats,
    EffectiveRobustness,
    PrivilegedDirections,
    concept_counts,
    effective_robustness,
    largest_coordinates,
    linear_cka,
    privileged_directions,
    prune_sweep,
)
from jaxclip.analysis.concepts import Negatives
from jaxclip.analysis.directions import Importance
from jaxclip.analysis.robustness import XAxis, x_column
from jaxclip.analysis.rows import BLOCK, AnyArray, row_slices
from jaxclip.config import check_seed
from jaxclip.data import imagenet_templates, imagenet_wnids
from jaxclip.datasets import Source, class_subset, concepts, label_map, open_source
from jaxclip.datasets.named import Concepts
from jaxclip.datasets.subsets import is_shift, plain_name
from jaxclip.errors import InputError
from jaxclip.evaluation import Accuracy, label_space, top_k_hits
from jaxclip.files import new_file
from jaxclip.model import Model
from jaxclip.progress import progress
from jaxclip.store import MANIFEST, Representations, model_digest, open_store
from jaxclip.zero_shot import zero_shot_head

IMAGENET, BRODEN = "imagenet2012", "broden"
STEADY = 0.5
"""A feature that is an outlier in at least this share of the images is counted as one."""
LEADING = 5
"""How many of the most important directions are described, by as many features each."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Where the method can be read in two ways, and what is drawn at random.

    Attributes:
        importance: Of a direction, see :func:`jaxclip.analysis.privileged_directions`.
        outlier_threshold: In standard deviations of an image's activations.
        fractions: Shares of the head's directions to prune, rising from 0.
        x: The ImageNet accuracy that predicts accuracy under shift: over all classes, or over the shift's.
        directions: Where concepts are looked for: the head's singular directions, or the unit coordinates.
        concept_threshold: The least average precision for "encodes".
        concept_thresholds: At which the unique concepts are counted.
        negatives: See :func:`jaxclip.analysis.concept_counts`.
        min_images: A concept in fewer images is skipped.
        seed: Of the bootstraps, the samples of negatives and the baselines.
    """

    importance: Importance = "cosine"
    outlier_threshold: float = 6.0
    fractions: tuple[float, ...] = tuple(i / 100 for i in range(101))
    x: XAxis = "full"
    directions: Literal["head", "coordinates"] = "head"
    concept_threshold: float = 0.9
    concept_thresholds: tuple[float, ...] = tuple(i / 100 for i in range(50, 100, 2))
    negatives: Negatives = "balanced"
    min_images: int = 20
    seed: int = 0

    def __post_init__(self):
        if list(self.fractions) != sorted({0.0, *self.fractions}) or self.fractions[-1] > 1:
            raise InputError(f"fractions are {self.fractions}: give shares that rise from 0 to at most 1")
        if not self.outlier_threshold > 0:
            raise InputError(f"outlier threshold is {self.outlier_threshold}: give a positive number")
        if not 0 < self.concept_threshold <= 1:
            raise InputError(f"concept threshold is {self.concept_threshold}: give one above 0 and at most 1")
        if self.min_images < 1:
            raise InputError(f"min images is {self.min_images}: give at least 1")
        check_seed(self.seed)


class Head(NamedTuple):
    """A linear head W [c, d] with its bias [c], and whether it is ``zero-shot`` or ``the model's own``."""

    W: Float[np.ndarray, "c d"]
    b: Float[np.ndarray, " c"]
    kind: str


class Labelled(NamedTuple):
    """Representations with what is right for each.

    Attributes:
        h: One row for each image.
        labels: Of each row.
        answers: Which of the head's classes are right for each label.
        classes: The m classes that may be chosen.
    """

    h: Float[AnyArray, "n d"]
    labels: Int[np.ndarray, " n"]
    answers: Bool[np.ndarray, "l c"]
    classes: Int[np.ndarray, " m"]


@dataclasses.dataclass(frozen=True)
class Activations:
    """Kurtosis and outlier features; see :class:`jaxclip.analysis.ActivationSummary`.

    Attributes:
        kurtosis: Mean over the images; NaN where none has one.
        standard_error: Of that mean; NaN below two images.
        images: How many were seen.
        constant: How many have no kurtosis.
        threshold: In standard deviations.
        mean_abs: Mean |h_i| of each feature.
        share: Share of the images where the feature exceeds the threshold.
    """

    kurtosis: float
    standard_error: float
    images: int
    constant: int
    threshold: float
    mean_abs: list[float]
    share: list[float]

    @property
    def outliers(self) -> list[int]:
        """The features that are outliers in at least ``STEADY`` of the images, the most frequent first."""
        order = np.lexsort((-np.array(self.mean_abs), -np.array(self.share)))
        return [int(i) for i in order if self.share[i] >= STEADY]


@dataclasses.dataclass(frozen=True)
class Directions:
    """How much the head reads along each of its singular directions; see :func:`privileged_directions`.

    Attributes:
        kind: Which importance.
        singular_values: Falling.
        importance: Of each direction, in the order of the singular values.
        order: The directions, the most important first.
        max_over_mean: The largest importance over the mean one.
        kurtosis: Of the importance over the directions; NaN where all are equal.
        features: Of the ``LEADING`` most important directions, the features that they load on most.
        coordinates: The directions' coordinates there.
    """

    kind: str
    singular_values: list[float]
    importance: list[float]
    order: list[int]
    max_over_mean: float
    kurtosis: float
    features: list[list[int]]
    coordinates: list[list[float]]


@dataclasses.dataclass(frozen=True)
class Pruning:
    """Accuracy over the share of directions pruned.

    Attributes:
        fractions: Shares of the directions, rising from 0.
        accuracy: On each set, and for ImageNet on the classes of shifts, for each fraction.
    """

    fractions: list[float]
    accuracy: dict[str, list[float]]

    def at(self, values: Sequence[float] | Float[np.ndarray, " f"], share: float) -> float:
        """Of values for each fraction, the one nearest to ``share``; NaN where none within 0.005 was tried."""
        away = np.abs(np.asarray(self.fractions) - share)
        return float(values[int(away.argmin())]) if away.min() < 0.005 else np.nan

    def mean(self, sets: Sequence[str]) -> Float[np.ndarray, " f"]:
        """Mean accuracy over the sets; NaN where one is missing, since a mean over fewer is another quantity."""
        missing = [np.nan] * len(self.fractions)
        return np.array([self.accuracy.get(name, missing) for name in sets]).mean(0)


@dataclasses.dataclass(frozen=True)
class ConceptSummary:
    """What is reported of :class:`jaxclip.analysis.ConceptCounts`. Dictionaries are by ``BASELINES``.

    Attributes:
        threshold: The least average precision for "encodes".
        unique: How many concepts some direction encodes.
        polysemanticity: Mean number of concepts of the directions that encode any; NaN where none does.
        thresholds: Of average precision.
        unique_over: The number of unique concepts at each of these.
        per_direction: How many concepts each direction encodes.
        encoded: From each concept that is encoded, the number of directions that do.
        best: Of the concepts that most directions encode: name, category, number of images, number of directions, the
            best direction with its sign, its average precision, and the ids of the images that it scores highest.
        tested: How many concepts were looked for.
        skipped: How many are in too few images.
        min_images: What is too few.
    """

    threshold: float
    unique: dict[str, int]
    polysemanticity: dict[str, float]
    thresholds: list[float]
    unique_over: dict[str, list[int]]
    per_direction: list[int]
    encoded: dict[str, int]
    best: list[dict[str, Any]]
    tested: int
    skipped: int
    min_images: int


BASELINES = {"directions": "directions", "random_directions": "random directions", "permuted_labels": "permuted labels"}


@dataclasses.dataclass(frozen=True)
class Analysis:
    """Everything about one model.

    Attributes:
        model: Its name.
        head: The kind of its head.
        reference: The set that importance and kurtosis are measured on.
        options: How.
        accuracy: On the reference and on every other labelled set.
        robustness: Effective robustness; None where the reference is not ImageNet.
        activations: Kurtosis and outlier features.
        directions: Privileged directions.
        pruning: Accuracy over the share pruned.
        pruned_robustness: Effective robustness for each of the pruning's fractions; None as ``robustness``.
        concepts: None where there is no concept set.
        missing: What is not there, in words.
        stores: From each set, its key in the store.
        jaxclip: The version of the tool.
    """

    model: str
    head: str
    reference: str
    options: Options
    accuracy: dict[str, Accuracy]
    robustness: EffectiveRobustness | None
    activations: Activations
    directions: Directions
    pruning: Pruning
    pruned_robustness: EffectiveRobustness | None
    concepts: ConceptSummary | None
    missing: list[str]
    stores: dict[str, str]
    jaxclip: str = jaxclip.__version__


# --- pieces ----------------------------------------------------------------------------------------------------------


def read_head(model: Model, classnames: Sequence[str], templates: Sequence[str] | None = None) -> Head:
    """A classifier's own head, or a CLIP's from the names and the prompts (None: ImageNet's 80).

    Raises:
        InputError: The model's own head has another number of classes.
    """
    if (own := model.head) is None:
        W = zero_shot_head(model, classnames, imagenet_templates() if templates is None else templates)
        return Head(np.asarray(W), np.zeros(len(classnames), np.float32), "zero-shot")
    if len(own[0]) != len(classnames):
        raise InputError(f"the head of {model.config.name} has {len(own[0])} classes, and the data {len(classnames)}")
    return Head(np.asarray(own[0]), np.asarray(own[1]), "the model's own")


def class_names(stored: Representations) -> list[str]:
    """The names of the classes that a head for this set chooses between."""
    return label_space(cast(Source, stored))[0]


def is_imagenet(stored: Representations) -> bool:
    """Whether the labels are ImageNet's 1,000."""
    return list(stored.classes) == imagenet_wnids()


def labelled(stored: Representations) -> Labelled:
    """The set with what is right for each image, and the classes that its name says may be chosen.

    Raises:
        InputError: An image has no label, or one that is no class to choose from (the message names it).
    """
    _, answers, classes = label_space(cast(Source, stored))
    wrong = (stored.labels < 0) | ~np.any(answers[:, classes], axis=1)[stored.labels]
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise InputError(
            f"{stored.name}: picture {stored.ids[row]} has the label {stored.labels[row]}, no class to choose from: "
            "analyses of a head need labelled pictures of its classes"
        )
    return Labelled(stored, stored.labels, answers, classes)


def only(data: Labelled, subset: Int[np.ndarray, " m"], alike: Iterable[Int[np.ndarray, " k"]] = ()) -> Labelled:
    """The images of some classes, to choose between these alone; classes of one group of ``alike`` count as one."""
    rows = np.flatnonzero(np.any(data.answers[:, subset], axis=1)[data.labels])
    if not rows.size:
        raise InputError("no picture is of the subset's classes")
    answers = data.answers.copy()
    for group in alike:
        answers[np.ix_(np.any(data.answers[:, group], axis=1), group)] = True
    return Labelled(data.h[rows], data.labels[rows], answers, np.asarray(subset))


def accuracy(head: Head, data: Labelled) -> Accuracy:
    """Top-1 accuracy with the whole head."""
    W, b = jnp.asarray(head.W[data.classes]), jnp.asarray(head.b[data.classes])
    answers, right = jnp.asarray(data.answers[:, data.classes]), 0
    for start in range(0, len(data.labels), BLOCK):
        some = slice(start, start + BLOCK)
        h = jnp.asarray(data.h[some], jnp.float32)
        right += int(top_k_hits(h, W, b, data.labels[some], answers, k=1).sum())
    return Accuracy.of(right, len(data.labels))


def activations(reference: Float[AnyArray, "n d"], options: Options = Options()) -> Activations:
    """Kurtosis and outlier features, in one pass."""
    found = ActivationStats.empty(reference.shape[1], options.outlier_threshold).update(reference).result()
    return Activations(
        found.kurtosis,
        found.standard_error,
        found.images,
        found.constant,
        options.outlier_threshold,
        found.outliers.mean_abs.tolist(),
        found.outliers.share.tolist(),
    )


def rank(head: Head, reference: Float[AnyArray, "n d"], options: Options = Options()) -> PrivilegedDirections:
    """The head's directions, ranked on the reference set."""
    return privileged_directions(head.W, reference, options.importance)


def directions(ranked: PrivilegedDirections, options: Options = Options()) -> Directions:
    """What is reported of the ranking."""
    features, coordinates = largest_coordinates(ranked.directions[ranked.order[:LEADING]], LEADING)
    return Directions(
        options.importance,
        ranked.singular_values.tolist(),
        ranked.importance.tolist(),
        ranked.order.tolist(),
        ranked.max_over_mean,
        ranked.kurtosis,
        features.tolist(),
        coordinates.tolist(),
    )


def prune(head: Head, ranked: PrivilegedDirections, data: Labelled, options: Options = Options()) -> list[float]:
    """Accuracy for each of ``options.fractions``."""
    several = [np.flatnonzero(row) for row in data.answers & np.isin(np.arange(len(head.W)), data.classes)]
    table = np.full((len(several), max(map(len, several))), -1)
    for row, right in zip(table, several, strict=True):
        row[: len(right)] = right
    return prune_sweep(
        head.W,
        data.h,
        table[data.labels],
        options.fractions,
        ranked,
        data.classes.tolist(),
        head.b,
    ).tolist()


def views(reference: Representations, others: Mapping[str, Representations], x: XAxis) -> dict[str, Labelled]:
    """Every set to classify, by name; where ``x`` is ``subset``, ImageNet's images of the shifts' classes too.

    As the testbed has it, ImageNet classes of one ObjectNet label are one.

    Raises:
        InputError: A set has other classes than the reference, so that its labels are numbers of other classes.
    """
    names = class_names(reference)
    for name, stored in others.items():
        if class_names(stored) != names:
            raise InputError(
                f"{name} has other classes than {reference.name} ({stored.folder}): open it with the same classes"
            )
    found = {name: labelled(stored) for name, stored in {reference.name: reference, **others}.items()}
    if x == "subset" and is_imagenet(reference):
        for shift in SHIFTS:
            if (column := x_column(shift, x)) != x_column(shift, "full"):
                subset = cast(np.ndarray, class_subset(shift))
                found[column] = only(found[reference.name], subset, label_map(shift).values())
    return found


def robustness(
    reference: str,
    accuracies: Mapping[str, Float[Any, " m"]],
    options: Options = Options(),
    *,
    baselines: Mapping[str, Float[Any, " b"]] | None = None,
    shifts: Sequence[str] = SHIFTS,
) -> EffectiveRobustness:
    """Effective robustness of m models (or of one, pruned to m levels) over the standard models.

    Args:
        reference: The name of ImageNet's set, or of the set that stands for it.
        accuracies: By set, with the names of :func:`views`; a shift that is missing gives NaN.
        options: For ``x`` and the bootstrap.
        baselines: The standard models' accuracies by set; None for the ImageNet testbed's.
        shifts: The shift sets' names.
    """
    known = {x_column(shift, options.x) for shift in shifts} | set(shifts)

    def columns(table: Mapping[str, Any], imagenet: str = reference) -> dict[str, Any]:
        return {"imagenet": table[imagenet]} | {k: v for k, v in table.items() if k in known}

    line = columns(standard_models().columns, "imagenet") if baselines is None else columns(baselines)
    key = jax.random.key(options.seed)
    return effective_robustness(columns(accuracies), line, options.x, key=key, shifts=shifts)


def summarise_concepts(
    h: Float[AnyArray, "n d"],
    ids: Sequence[str],
    found: Concepts,
    directions: Float[np.ndarray, "r d"],
    options: Options = Options(),
    *,
    top: int = 9,
) -> ConceptSummary:
    """Which concepts the directions encode, with both baselines.

    Args:
        h: The concept set's representations.
        ids: The name of each row's image.
        found: The concepts of each of these rows.
        directions: One in each row.
        options: Thresholds, negatives, seed.
        top: How many concepts are described, by as many images each.
    """
    with progress("concepts", 3 * len(directions) * len(found.names), "pairs") as advance:
        counts = concept_counts(
            h,
            found.matrix,
            directions,
            options.concept_threshold,
            options.negatives,
            key=jax.random.key(options.seed),
            min_images=options.min_images,
            advance=advance,
        )
    kinds = {kind: getattr(counts, kind) for kind in BASELINES}
    precision, encoded = counts.directions.average_precision, counts.directions.encoded
    times = encoded.sum(0)
    best = np.nan_to_num(precision, nan=-1.0)
    order = [int(c) for c in np.lexsort((-best.max(0), -times)) if times[c]][:top]
    strongest = best.argmax(0)[order]
    scores = np.concatenate([h[rows].astype(np.float32) @ directions[strongest].T for rows in row_slices(h)])
    described = []
    for c, i, score in zip(order, strongest.tolist(), scores.T, strict=True):
        sign = int(counts.directions.sign[i, c])
        described.append(
            {
                "concept": found.names[c],
                "category": found.categories[c],
                "images": int(counts.images[c]),
                "directions": int(times[c]),
                "direction": i,
                "sign": sign,
                "average_precision": float(precision[i, c]),
                "top_images": [ids[row] for row in np.argsort(-sign * score, kind="stable")[:top]],
            }
        )
    return ConceptSummary(
        options.concept_threshold,
        {kind: e.unique for kind, e in kinds.items()},
        {kind: e.polysemanticity for kind, e in kinds.items()},
        list(options.concept_thresholds),
        {kind: e.unique_over(np.array(options.concept_thresholds)).tolist() for kind, e in kinds.items()},
        counts.directions.per_direction.tolist(),
        {found.names[c]: int(times[c]) for c in np.flatnonzero(times)},
        described,
        len(found.names) - counts.skipped,
        counts.skipped,
        counts.min_images,
    )


def concept_directions(ranked: PrivilegedDirections, options: Options = Options()) -> Float[np.ndarray, "r d"]:
    """The directions that concepts are looked for in."""
    return ranked.directions if options.directions == "head" else np.eye(ranked.directions.shape[1], dtype=np.float32)


def broden_concepts(stored: Representations, data_dir: str | os.PathLike | None = None) -> Concepts:
    """The concepts of each row of Broden's representations, from the prepared Broden.

    Raises:
        InputError: Broden is not prepared here, or is not the one that the representations are of.
    """
    source = open_source(stored.name, data_dir=data_dir)
    if source.fingerprint() != stored.manifest["identity"]["data"]:
        raise InputError(f"{stored.folder} is of another {stored.name} than the one prepared here: embed it again")
    found = concepts(source)  # type: ignore[arg-type]
    return found._replace(matrix=found.matrix[stored.indices])


def cka(a: Representations, b: Representations) -> float:
    """Linear CKA over the images that both have.

    Raises:
        InputError: The two are not of the same data set's pictures.
    """
    if a.manifest["identity"]["data"] != b.manifest["identity"]["data"]:
        raise InputError(
            f"{a.folder} and {b.folder} are of different pictures, both called {a.name}: embed one of them again"
        )
    if np.array_equal(a.indices, b.indices):
        return linear_cka(a, b)
    _, in_a, in_b = np.intersect1d(a.indices, b.indices, return_indices=True)
    return linear_cka(a[in_a], b[in_b])


# --- all of them -----------------------------------------------------------------------------------------------------


def analyze(
    name: str,
    head: Head,
    reference: Representations,
    others: Mapping[str, Representations],
    concept_set: tuple[Representations, Concepts] | None = None,
    options: Options = Options(),
    missing: Iterable[str] = (),
) -> Analysis:
    """Every analysis of one model.

    Args:
        name: The model's.
        head: Its head, over the reference's classes.
        reference: The labelled set that kurtosis and importance are measured on: ImageNet's test images.
        others: Other labelled sets of the same classes (the shifts), by name.
        concept_set: Representations with the concepts of each row.
        options: How the method is read.
        missing: What to say is not there.

    Raises:
        InputError: Shapes or labels do not fit, or a representation is not finite.
    """
    ranked = rank(head, reference, options)
    sets = views(reference, others, options.x)
    accuracies = {name: accuracy(head, data) for name, data in sets.items()}
    pruning = Pruning(list(options.fractions), {k: prune(head, ranked, data, options) for k, data in sets.items()})
    imagenet = is_imagenet(reference)
    judged = imagenet and not is_shift(reference.name)
    stores = {reference.name: reference, **others} | ({concept_set[0].name: concept_set[0]} if concept_set else {})
    return Analysis(
        model=name,
        head=head.kind,
        reference=reference.name,
        options=options,
        accuracy=accuracies,
        robustness=robustness(reference.name, {k: [a.value] for k, a in accuracies.items()}, options)
        if judged
        else None,
        activations=activations(reference, options),
        directions=directions(ranked, options),
        pruning=pruning,
        pruned_robustness=robustness(reference.name, pruning.accuracy, options) if judged else None,
        concepts=summarise_concepts(
            concept_set[0], concept_set[0].ids, concept_set[1], concept_directions(ranked, options), options
        )
        if concept_set
        else None,
        missing=[
            *([f"no representations of {s}" for s in SHIFTS if s not in others] if judged else []),
            *([f"no effective robustness without representations of {IMAGENET}"] if imagenet and not judged else []),
            *missing,
        ],
        stores={k: stored.folder.name for k, stored in stores.items()},
    )


def analyze_stored(
    model: Model,
    data: Sequence[str | os.PathLike],
    options: Options = Options(),
    data_dir: str | os.PathLike | None = None,
) -> Analysis:
    """Every analysis of one model, of all that the stores have of it.

    Args:
        model: The checkpoint that the representations were made with.
        data: Stores, or the folders of single keys in them. The reference is ImageNet where it is there, otherwise the
            one labelled set that is no shift, or of several the first, given as a single key; other sets with the same
            classes, and the shifts, are classified beside it.
        options: How the method is read.
        data_dir: Where Broden is prepared, if its representations are there.

    Raises:
        InputError: The stores have no labelled representations by this model, two of one data set, or several sets
            that may be the reference.
    """
    if not data:
        raise InputError("no store is named: give those that `jaxclip embed` wrote (--data)")
    found = _of_model(model, data)
    labels = {k: found[k] for k in sorted(found, key=_place) if found[k].classes and k.partition("/")[0] != BRODEN}
    if not labels:
        where = ", ".join(map(str, data))
        raise InputError(
            f"{where}: no representations of labelled pictures by {model.config.name}: make them with `jaxclip embed`"
        )
    first = IMAGENET if IMAGENET in labels else _reference(labels, data)
    reference = labels.pop(first)
    names = class_names(reference)
    others = {k: stored for k, stored in labels.items() if class_names(stored) == names}
    missing = [f"{k} has other classes than {first}, and is left out" for k in labels if k not in others]
    concept_set = None
    broden = next((s for k, s in found.items() if k.partition("/")[0] == BRODEN), None)
    if broden is None:
        missing.append(f"no representations of {BRODEN}, so concepts are not looked for")
    else:
        try:
            concept_set = broden, broden_concepts(broden, data_dir)
        except InputError as error:
            missing.append(f"concepts are not looked for: {error}")
    head = read_head(model, names)
    return analyze(model.config.name, head, reference, others, concept_set, options, missing)


def _of_model(model: Model, data: Sequence[str | os.PathLike]) -> dict[str, Representations]:
    """The model's representations by data set; of one in two places, the first; of two types in one, float32."""
    digest = model_digest(model)
    found: dict[str, Representations] = {}
    for path in data:
        mine = (stored for stored in finished(path) if stored.manifest["identity"]["model"] == digest)
        found |= by_set(stored for stored in mine if plain_name(stored.name) not in found)
    return found


def by_set(stores: Iterable[Representations]) -> dict[str, Representations]:
    """One model's representations by data set, whose name is a shift's own where a folder had its authors' name for it.

    Args:
        stores: As :func:`finished` sorts them: of two types of one set the first, float32, is taken.

    Raises:
        InputError: Two of one set are of one type, or of different pictures: which is meant cannot be known.
    """
    found: dict[str, Representations] = {}
    for stored in stores:
        other = found.setdefault(plain_name(stored.name), stored)
        one, two = (s.manifest["identity"]["data"] for s in (other, stored))
        if other is not stored and (other.dtype == stored.dtype or one != two):
            raise InputError(
                f"{other.folder} and {stored.folder} are both of {stored.name}, by one model: name the folder of one "
                "before the store, or move the other out of it"
            )
    return found


def _place(name: str) -> tuple[int, str]:
    """Where a set stands in tables: the shifts in their order, then others by name."""
    return (SHIFTS.index(name) if name in SHIFTS else len(SHIFTS), name)


def _reference(labels: Mapping[str, Representations], data: Sequence[str | os.PathLike]) -> str:
    """The set that stands for ImageNet: the only one that is no shift, or the first folder, if it is of one key."""
    sets = [name for name in labels if name not in SHIFTS] or list(labels)
    first = next((name for name in labels if labels[name].folder.resolve() == Path(data[0]).resolve()), None)
    if first is not None:
        return first
    if len(sets) > 1:
        raise InputError(
            f"any of {', '.join(sets)} may be what kurtosis and importance are measured on: embed {IMAGENET}, or name "
            "the folder of one key first"
        )
    return sets[0]


def finished(path: str | os.PathLike) -> list[Representations]:
    """The finished representations in a store, or of one key's folder; 32-bit ones first, then by key.

    Raises:
        InputError: There is no such folder, or none is finished.
    """
    path = Path(path)
    folders = [path] if (path / MANIFEST).is_file() else sorted(file.parent for file in path.glob(f"*/{MANIFEST}"))
    if not folders:
        raise InputError(f"{path} has no finished representations: make them with `jaxclip embed`")
    return sorted((open_store(folder) for folder in folders), key=lambda stored: -stored.dtype.itemsize)


def plain(x: Any) -> Any:
    """``x`` for JSON: fields by name, arrays as lists, null for numbers that are not finite."""
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return {field.name: plain(getattr(x, field.name)) for field in dataclasses.fields(x)}
    if isinstance(x, tuple) and hasattr(x, "_asdict"):
        return {name: plain(value) for name, value in x._asdict().items()}
    if isinstance(x, Mapping):
        return {str(key): plain(value) for key, value in x.items()}
    if isinstance(x, np.ndarray | np.generic):
        return plain(x.tolist())
    if isinstance(x, list | tuple):
        return [plain(value) for value in x]
    if isinstance(x, float) and not np.isfinite(x):
        return None
    return x


def save_json(path: Path, content: Any) -> None:
    """Writes :func:`plain` ``content``."""
    with new_file(path, encoding="utf-8") as file:
        json.dump(plain(content), file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def read_json(path: Path) -> Any:
    """What :func:`save_json` wrote of content without None, whose nulls are NaN."""

    def numbers(x: Any) -> Any:
        if isinstance(x, dict):
            return {key: numbers(value) for key, value in x.items()}
        if isinstance(x, list):
            return [numbers(value) for value in x]
        return math.nan if x is None else x

    return numbers(json.loads(path.read_text(encoding="utf-8")))
