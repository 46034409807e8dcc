"""Average precision of every (direction, concept) pair, from one sort for each direction.

With R(x) = the number of images that score at least as high as x, and hits(x) = the number of positives among them,
average precision is the mean of hits/R over the positives. That is scikit-learn's definition, ties included: all images
of a group of equal scores have the same R. So each direction is sorted once for all concepts. What is left is hits, for
every positive of every concept: each concept's positives are marked in a bitmap over the sorted order, and hits is a
running count of set bits up to R. Linear in the positives and in n/32, with no sort for a concept.

Counting only the negatives of a sample works the same, with a second bitmap: R is then hits + negatives up to R. And
the direction's other sign needs no second sort either: it counts from the other end of the same bitmaps.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxclip.analysis.rows import EXACT, AnyArray, check_finite, matrix, side_by_side, take
from jaxclip.errors import InputError

Labels: TypeAlias = Bool[np.ndarray, "n c"] | Bool[Array, "n c"] | scipy.sparse.sparray | scipy.sparse.spmatrix

_LOG_BITS, _LOG_WORDS = 5, 2
_BITS = 1 << _LOG_BITS  # of a bitmap's word
_WORDS = 1 << _LOG_WORDS  # words that share one running count
_DIRECTIONS = 8  # directions that go through the kernel at once
_TABLE = 2**26  # words of bitmaps, and listed images, at once: 0.8 GB for each thread at the most, 60 MB for Broden


def average_precision(scores: Float[AnyArray, "n d"], labels: Labels) -> Float[np.ndarray, "d c"]:
    """scikit-learn's ``average_precision_score`` of every column of scores with every column of labels.

    Equal to ``average_precision_score(labels[:, c], scores[:, d])`` to 1e-6, with equal scores treated as there. It is
    meant for few positives: the work is d · (n log n + positives + c·n/32).

    Args:
        scores: One column for each direction; higher means that the concept is rather there. Compared as float32.
        labels: Which images have which concept: dense 0/1, or any scipy.sparse matrix or array, which is what
            scikit-learn takes for multi-label data (and what this converts to: one column's positives are contiguous in
            CSC form).

    Returns:
        Average precision; 0 for a concept without a positive, as scikit-learn has it.

    Raises:
        InputError: The numbers of rows differ, a label is not 0 or 1, or a score is NaN or infinite (the row is named).
    """
    scores = matrix("scores", scores)
    labels = label_matrix(labels, scores.shape[0])
    scores = jnp.asarray(scores, jnp.float32)
    check_finite("scores", scores)
    return pairwise(lambda some: scores[:, some].T, scores.shape[1], labels)


def label_matrix(labels: Labels, images: int) -> scipy.sparse.csc_array:
    """``labels`` in CSC form: every stored entry is a positive, rows rising in each column.

    Raises:
        InputError: It is not a matrix of 0 and 1 with ``images`` rows.
    """
    if np.ndim(labels) != 2:
        raise InputError(f"labels have shape {np.shape(labels)}: give a matrix [images, concepts]")
    out = scipy.sparse.csc_array(labels if scipy.sparse.issparse(labels) else np.asarray(labels), copy=True)
    out.sum_duplicates()
    out.eliminate_zeros()
    if out.shape[0] != images or not out.shape[1]:
        raise InputError(f"labels have shape {out.shape}: give one row for each of the {images} images, and a concept")
    if not np.all(out.data == 1):
        row = out.indices[np.flatnonzero(out.data != 1)[0]]
        raise InputError(f"labels: row {row} has a value that is neither 0 nor 1")
    return out


def pairwise(
    scores: Callable[[np.ndarray], Float[Array, "k n"]],
    directions: int,
    positives: scipy.sparse.csc_array,
    negatives: scipy.sparse.csc_array | None = None,
    both_signs: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> Float[np.ndarray, "d c"]:
    """Average precision of all pairs, where scores are made a few directions at a time.

    Args:
        scores: From the numbers of some directions to their finite float32 scores; called from several threads.
        directions: How many there are.
        positives: A :func:`label_matrix`.
        negatives: In the same form, the images without each concept that count; None means all of them.
        both_signs: Take the larger average precision of the scores and of their negatives; the latter as a negative.
        advance: Is told how many pairs have been done, each time that some have.
    """
    sides = [positives] if negatives is None else [positives, negatives]
    out = np.zeros((directions, positives.shape[1]), np.float32)
    for part in _parts(sides):
        pieces = [side[:, part] for side in sides]
        lists = [_list(piece) for piece in pieces]
        counts = [jnp.asarray(np.diff(piece.indptr), jnp.int32) for piece in pieces]

        def run(start: int, part: slice = part, lists: Any = lists, counts: Any = counts) -> None:
            some = np.minimum(np.arange(start, start + _DIRECTIONS), directions - 1)  # one shape: one compilation
            found = np.asarray(_average_precision(scores(some), lists, counts, both_signs))
            out[some, part] = found
            advance(found[: directions - start].size)

        for _ in side_by_side(run, range(0, directions, _DIRECTIONS)):
            pass
    return out


class _Lists(NamedTuple):
    """Which images belong to which concept, in rows of 32 of the same concept; image n fills the rows up."""

    images: Int[Array, "r 32"]
    concept: Int[Array, " r"]


class _Bitmaps(NamedTuple):
    """For each concept a bitmap over the sorted order, and running counts of its set bits; all flat, concept-major."""

    bits: UInt32[Array, " c*g*4"]
    within: UInt32[Array, " c*g"]
    """The bits before each of a group's four words, from the group's start: four bytes in a word."""
    before: Float[Array, " c*g"]
    """The bits before the group; exact, since n < 2**24."""


def _parts(sides: list[scipy.sparse.csc_array]) -> Iterator[slice]:
    """The concepts, in as many pieces as the memory needs."""
    images, concepts = sides[0].shape
    if images >= 2**24:
        raise InputError(f"average precision counts exactly up to {2**24 - 1:,} images, and there are {images:,}")
    cost = np.cumsum(sum(np.diff(side.indptr) + images // _BITS + 2 * _BITS for side in sides))
    start = 0
    while start < concepts:
        spent = cost[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(cost, spent + _TABLE, side="right")))
        yield slice(start, stop)
        start = stop


def _list(side: scipy.sparse.csc_array) -> _Lists:
    images, concepts = side.shape
    counts = np.diff(side.indptr)
    rows = -(-counts // _BITS)
    concept = np.repeat(np.arange(concepts), rows)
    filled = np.full((len(concept), _BITS), images, np.int32)
    first = np.repeat((np.cumsum(rows) - rows) * _BITS, counts)
    filled.reshape(-1)[first + np.arange(len(first)) - np.repeat(side.indptr[:-1], counts)] = side.indices
    return _Lists(jnp.asarray(filled), jnp.asarray(concept, jnp.int32))


@jax.jit(static_argnames="both_signs")
def _average_precision(
    scores: Float[Array, "k n"], lists: list[_Lists], counts: list[Int[Array, " c"]], both_signs: bool
) -> Float[Array, "k c"]:
    n = scores.shape[1]
    images, concept = lists[0]
    totals = functools.reduce(jnp.add, counts)

    def one(row: Float[Array, " n"]) -> Float[Array, " c"]:
        position, higher, reached = _places(row)
        maps = [_bitmaps(side, position, len(counts[0])) for side in lists]

        def mean(upto: Int[Array, " n"], from_the_end: bool) -> Float[Array, " c"]:
            at = take(jnp.append(upto, n), images)
            hits, *others = (_count(side, at, concept * (_groups(n) * _WORDS)) for side in maps)
            ranked = hits + others[0] if others else at.astype(jnp.float32)
            if from_the_end:
                hits = counts[0][concept][:, None] - hits
                ranked = (totals[concept][:, None] if others else n) - ranked
            precision = jnp.where(images < n, hits / ranked, 0)
            with jax.enable_x64(True):  # whole numbers: a GPU adds in any order, which rounds floats differently
                fixed = (precision * 2.0**38).astype(jnp.int64).sum(1)  # of at most n < 2**24 ones: no overflow
                sums = jax.ops.segment_sum(fixed, concept, len(counts[0]), indices_are_sorted=True)
                sums = sums.astype(jnp.float32) * 2.0**-38
            return sums / jnp.maximum(counts[0], 1)

        forward = mean(reached, False)
        if not both_signs:
            return forward
        backward = mean(higher, True)
        return jnp.where(forward >= backward, forward, -backward)

    return lax.map(one, scores)


def _places(scores: Float[Array, " n"]) -> tuple[Int[Array, " n"], Int[Array, " n"], Int[Array, " n"]]:
    """Of each image: its place in falling order (equal scores in image order), and how many images score higher, and at
    least as high.
    """  # noqa: D205
    n = len(scores)
    bits = lax.bitcast_convert_type(scores, jnp.int32)
    bits = jnp.where(bits == jnp.iinfo(jnp.int32).min, 0, bits)  # -0.0 equals 0.0
    rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # integers in the order of the floats
    # Score and image in one integer: XLA's CPU sort is four times as fast on one operand as on two. 64 bits are enabled
    # for these lines alone.
    with jax.enable_x64(True):
        packed = (~rising).astype(jnp.int64) << 32 | lax.iota(jnp.int64, n)
        packed = lax.sort(packed, is_stable=False)
        order = (packed & 0xFFFFFFFF).astype(jnp.int32)
        key = (packed >> 32).astype(jnp.int32)
    place = lax.iota(jnp.int32, n)
    differs = key[1:] != key[:-1]
    edge = jnp.ones(1, bool)
    higher = lax.cummax(jnp.where(jnp.concatenate([edge, differs]), place, 0))
    reached = lax.cummin(jnp.where(jnp.concatenate([differs, edge]), place + 1, n), reverse=True)

    def by_image(values: Int[Array, " n"]) -> Int[Array, " n"]:
        return jnp.zeros(n, jnp.int32).at[order].set(values, unique_indices=True, mode="promise_in_bounds")

    return by_image(place), by_image(higher), by_image(reached)


def _bitmaps(lists: _Lists, position: Int[Array, " n"], concepts: int) -> _Bitmaps:
    n = len(position)
    groups = _groups(n)
    # Image n stands behind all others, where no count reaches; that its bit is added more than once does no harm there.
    place = take(jnp.append(position, n), lists.images)
    word, bit = _address(place, lists.concept * (groups * _WORDS))
    bits = (
        jnp.zeros(concepts * groups * _WORDS, jnp.uint32)
        .at[word]
        .add(bit, mode="promise_in_bounds", wrap_negative_indices=False)
    )
    set_bits = lax.population_count(bits).reshape(concepts, groups, _WORDS)
    # Multiplying by 0x01…00 adds a word's count to the byte of every later word: three words have at most 96 bits.
    later = jnp.array([0x01010100, 0x01010000, 0x01000000, 0], jnp.uint32)
    within = (set_bits * later).sum(-1, dtype=jnp.uint32)
    before = _running_sum(set_bits.sum(-1).astype(jnp.float32))
    return _Bitmaps(bits, within.reshape(-1), before.reshape(-1))


def _groups(n: int) -> int:
    """Groups of words in a bitmap of n images and the one behind them: a square number, for :func:`_running_sum`."""
    return (math.isqrt(n // (_BITS * _WORDS)) + 1) ** 2


def _running_sum(x: Float[Array, "c g"]) -> Float[Array, "c g"]:
    """Exclusive cumulative sums of a square number of small whole numbers, in two levels of multiplication by a
    triangle: on a CPU six times as fast as ``jnp.cumsum``.
    """  # noqa: D205
    side = math.isqrt(x.shape[1])
    blocks = x.reshape(-1, side, side)
    earlier = jnp.triu(jnp.ones((side, side), jnp.float32), 1)
    inside = jnp.matmul(blocks, earlier, precision=EXACT)
    sums = jnp.matmul(blocks.sum(-1), earlier, precision=EXACT)
    return (inside + sums[..., None]).reshape(x.shape)


def _count(maps: _Bitmaps, upto: Int[Array, "r 32"], first_word: Int[Array, " r"]) -> Float[Array, "r 32"]:
    """How many bits are set before place ``upto`` of the bitmap that begins at ``first_word``."""
    word, bit = _address(upto, first_word)
    group, byte = word >> _LOG_WORDS, (word & (_WORDS - 1)) << 3
    bits = lax.population_count(take(maps.bits, word) & (bit - 1))
    bits = bits + ((take(maps.within, group) >> byte.astype(jnp.uint32)) & 0xFF)
    return take(maps.before, group) + bits.astype(jnp.int32).astype(jnp.float32)


def _address(
    place: Int[Array, "r 32"], first_word: Int[Array, " r"]
) -> tuple[Int[Array, "r 32"], UInt32[Array, "r 32"]]:
    """Word and bit of a place in the bitmap that begins at ``first_word``; in shifts, as ``//`` takes twice as long."""
    return first_word[:, None] + (place >> _LOG_BITS), jnp.uint32(1) << (place & (_BITS - 1)).astype(jnp.uint32)
