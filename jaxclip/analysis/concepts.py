"""Which concepts a model's directions encode, beside what chance finds."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jaxtyping import Array, Bool, Float, Int, Int8, Key

from jaxclip.analysis.average_precision import Labels, label_matrix, pairwise
from jaxclip.analysis.rows import EXACT, AnyArray, blocks, matrix
from jaxclip.errors import InputError

Negatives = Literal["balanced", "all"]


@dataclasses.dataclass(frozen=True)
class EncodedConcepts:
    """Which direction encodes which concept, and the counts that follow.

    Attributes:
        average_precision: Of each direction, the better of its two signs, with each concept; NaN for skipped concepts
            [r, c].
        sign: The better of the two, 1 or -1; 0 for skipped concepts [r, c].
        threshold: A direction encodes a concept from this average precision on.
    """

    average_precision: Float[np.ndarray, "r c"]
    sign: Int8[np.ndarray, "r c"]
    threshold: float

    @property
    def encoded(self) -> Bool[Any, "r c"]:
        """Whether direction i encodes concept c."""
        return self.average_precision >= np.float32(self.threshold)  # NaN is not

    @property
    def concepts(self) -> Bool[np.ndarray, " c"]:
        """Whether any direction encodes concept c: the set to compare between models."""
        return self.encoded.any(0)

    @property
    def unique(self) -> int:
        """How many concepts are encoded by any direction."""
        return int(self.concepts.sum())

    @property
    def per_direction(self) -> Int[np.ndarray, " r"]:
        """How many concepts each direction encodes."""
        return self.encoded.sum(1)

    @property
    def polysemanticity(self) -> float:
        """Mean number of concepts over the directions that encode at least one; NaN where none does."""
        counts = self.per_direction[self.per_direction > 0]
        return float(counts.mean()) if counts.size else float("nan")

    def unique_over(self, thresholds: Float[Any, " t"]) -> Int[np.ndarray, " t"]:
        """The number of unique concepts at each of several thresholds."""
        best = np.nan_to_num(self.average_precision, nan=-1).max(0)
        return (best[None] >= np.asarray(thresholds, best.dtype)[:, None]).sum(1)  # rounded as in `encoded`


@dataclasses.dataclass(frozen=True)
class ConceptCounts:
    """The result of :func:`concept_counts`.

    Attributes:
        directions: What the given directions encode.
        random_directions: What as many random directions encode: how many concepts one finds without choosing
            directions.
        permuted_labels: What the given directions encode of the same concepts dealt to other images: how many one finds
            by chance among this many pairs. Above a handful, ``min_images`` is too low.
        images: How many images show each concept [c].
        skipped: How many concepts have fewer than ``min_images``, or no image without them.
        min_images: The least number of images.
    """

    directions: EncodedConcepts
    random_directions: EncodedConcepts
    permuted_labels: EncodedConcepts
    images: Int[np.ndarray, " c"]
    skipped: int
    min_images: int


def concept_counts(
    h: Float[AnyArray, "n d"],
    concepts: Labels,
    directions: Float[AnyArray, "r d"],
    threshold: float = 0.9,
    negatives: Negatives = "balanced",
    *,
    key: Key[Array, ""],
    min_images: int = 20,
    advance: Callable[[int], None] = lambda _: None,
) -> ConceptCounts:
    """Which concepts the directions encode, by the average precision of ⟨v_i, h(x)⟩ at telling images with a concept.

    Both signs of a direction count as one (the larger average precision). Two baselines are computed beside: random
    directions (normal, unit length) and permuted labels (images change places, so concepts keep their sizes and what
    they occur with).

    Args:
        h: Representations, one row for each image.
        concepts: Which images show which concept: dense 0/1, or any scipy.sparse matrix, [n, c].
        directions: One in each row: the ``directions`` of :func:`privileged_directions`, or ``numpy.eye(d)`` for the
            unit coordinates.
        threshold: The least average precision for "encodes".
        negatives: ``balanced`` compares with a random sample, drawn once for each concept, of as many images without it
            (all of them where they are fewer); ``all`` with every image without it.
        key: For the sample and the baselines.
        min_images: A concept in fewer images is skipped, and counted as skipped. Of useless directions (simulated,
            balanced, better of two signs) 6 in 100 reach 0.9 with 5 images, 3 in 1,000 with 10, 8 in a million with 20.
        advance: Is told how many pairs have been done, each time that some have: 3 · r · c in the end, skipped ones
            among them.

    Raises:
        InputError: Shapes do not fit, a label is not 0 or 1, a value is NaN or infinite (the row is named), or no
            concept has enough images.

    Source: Crabbé et al. 2024, section 4, after Bau et al. 2017.
    """
    if negatives not in get_args(Negatives):
        raise InputError(f"negatives is {negatives!r}, not one of {', '.join(get_args(Negatives))}")
    if not 0 < threshold <= 1:
        raise InputError(f"threshold is {threshold}: an average precision is above 0 and at most 1")
    h = matrix("h", h)
    directions = matrix("directions", directions, h.shape[1])
    h = jnp.concatenate([block for _, block in blocks("h", h)])
    directions = jnp.concatenate([block for _, block in blocks("directions", directions)])
    labels = label_matrix(concepts, len(h))
    images = np.diff(labels.indptr)
    kept = np.flatnonzero((images >= max(min_images, 1)) & (images < len(h)))
    if not kept.size:
        raise InputError(f"no concept is in at least {min_images} of the {len(h)} images: lower min_images")
    positives = labels[:, kept]
    sample_key, direction_key, label_key = jax.random.split(key, 3)
    others = _balanced(positives, sample_key) if negatives == "balanced" else None
    random = jax.random.normal(direction_key, directions.shape, jnp.float32)
    random = random / jnp.linalg.norm(random, axis=1, keepdims=True)
    shuffled = h[jax.random.permutation(label_key, len(h))]
    skipped = labels.shape[1] - len(kept)
    advance(3 * len(directions) * skipped)

    def encoded(h: Array, directions: Array) -> EncodedConcepts:
        def scores(some: np.ndarray) -> Array:
            return _project(directions[some], h)

        found = np.full((len(directions), labels.shape[1]), np.nan, np.float32)
        found[:, kept] = pairwise(scores, len(directions), positives, others, both_signs=True, advance=advance)
        sign = np.sign(np.nan_to_num(found)).astype(np.int8)
        return EncodedConcepts(np.abs(found), sign, threshold)

    return ConceptCounts(
        directions=encoded(h, directions),
        random_directions=encoded(h, random),
        permuted_labels=encoded(shuffled, directions),
        images=images,
        skipped=skipped,
        min_images=min_images,
    )


def _balanced(positives: scipy.sparse.csc_array, key: Key[Array, ""]) -> scipy.sparse.csc_array:
    """For each concept as many images without it, drawn without replacement; all of them where they are fewer."""
    images, concepts = positives.shape
    random = np.random.default_rng(np.asarray(jax.random.key_data(key)).reshape(-1))
    drawn = []
    without = np.ones(images, bool)
    for c in range(concepts):
        with_it = positives.indices[positives.indptr[c] : positives.indptr[c + 1]]
        without[with_it] = False
        rest = np.flatnonzero(without)
        without[with_it] = True
        drawn.append(np.sort(random.choice(rest, min(len(with_it), len(rest)), replace=False, shuffle=False)))
    indptr = np.cumsum([0, *map(len, drawn)])
    indices = np.concatenate(drawn)
    return scipy.sparse.csc_array((np.ones(len(indices), bool), indices, indptr), shape=positives.shape)


@jax.jit
def _project(directions: Float[Array, "k d"], h: Float[Array, "n d"]) -> Float[Array, "k n"]:
    return jnp.matmul(directions, h.T, precision=EXACT)
