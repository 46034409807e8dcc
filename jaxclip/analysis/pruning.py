"""Pruning the head: accuracy as its least important directions are set to 0, all shares in one computation."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxclip.analysis.directions import Importance, PrivilegedDirections, privileged_directions
from jaxclip.analysis.rows import (
    BLOCK,
    EXACT,
    AnyArray,
    all_finite,
    check_finite,
    for_jit,
    matrix,
    row_slices,
    side_by_side,
    take,
)
from jaxclip.errors import InputError

Labels = Int[Any, " n"] | Int[Any, "n k"]


def prune_sweep(
    W: Float[AnyArray, "c d"],
    h: Float[AnyArray, "n d"],
    labels: Labels,
    fractions: Float[Any, " f"],
    importance: Importance | PrivilegedDirections = "cosine",
    class_subset: Sequence[int] | None = None,
    bias: Float[Any, " c"] | None = None,
) -> Float[np.ndarray, " f"]:
    """Top-1 accuracy after setting σ_i = 0 for the least important share of the head's directions.

    Logits are sums over directions, Σ_i σ_i ⟨v_i, h⟩ u_i. So the sweep starts with everything pruned and adds
    directions back, the most important first, keeping the logits: all fractions together cost one multiplication by Vᵀ,
    one by Uσ, and a comparison for each fraction.

    Args:
        W: The head, without its bias.
        h: Representations, one row for each image.
        labels: The right class of each image, or several [n, k] of which each is right, filled up with -1 (ObjectNet).
        fractions: Shares to prune, 0 to 1, in any order; round(share · r) of the r directions go.
        importance: How to rank the directions on ``h``; or a ranking that was measured before. For a shifted data set,
            give the one from ImageNet.
        class_subset: The only classes that may be predicted (ImageNet-A, -R, ObjectNet); class numbers as in
            ``labels``.
        bias: The head's bias, which is never pruned.

    Returns:
        Accuracy for each fraction, 0 to 1. The class with the largest logit is predicted, and of classes with equal
        rows in W and ``bias`` the first; so too for a row of zeros, and for all images with all directions pruned. Of
        other ties, which are chance, the label gets the benefit.

    Raises:
        InputError: Shapes do not fit; a value is NaN or infinite, or a label is no class that may be predicted (the row
            is named); a fraction is outside 0 to 1.

    Source: Crabbé et al. 2024, section 3.
    """
    W = matrix("W", W)
    h = matrix("h", h, W.shape[1])
    classes = _classes(class_subset, W.shape[0])
    targets = _targets(labels, h.shape[0], classes, W.shape[0])
    shares = np.asarray(fractions, np.float64).reshape(-1)
    if not shares.size or not ((shares >= 0) & (shares <= 1)).all():
        raise InputError("fractions: give shares from 0 (nothing pruned) to 1 (everything)")
    offset = np.zeros(W.shape[0], np.float32) if bias is None else np.asarray(bias, np.float32)
    if offset.shape != (W.shape[0],) or not np.isfinite(offset).all():
        raise InputError(f"bias has shape {offset.shape} or a value that is not finite: give {W.shape[0]} numbers")
    ranked = importance if isinstance(importance, PrivilegedDirections) else privileged_directions(W, h, importance)
    if ranked.class_directions.shape[1:] + ranked.directions.shape[1:] != W.shape:
        raise InputError("importance was measured with a head of another shape")

    head = np.asarray(W, np.float32)[classes]
    offset = offset[classes]
    scorers = np.column_stack([head, offset]) + 0.0  # -0.0 is 0.0
    known: dict[bytes, int] = {}
    first = [known.setdefault(row.tobytes(), place) == place for place, row in enumerate(scorers)]
    predictable = np.where(first, offset, -np.inf)  # argmax takes the first of equals
    r = len(ranked.order)
    directions = ranked.directions[ranked.order]
    readout = (ranked.singular_values[:, None] * ranked.class_directions)[ranked.order][:, classes]

    kept, level = np.unique(r - np.floor(shares * r + 0.5).astype(int), return_inverse=True)
    steps = np.diff(kept)
    ahead = np.arange(steps.max(initial=0))
    groups = np.where(ahead < steps[:, None], kept[:-1, None] + ahead, r)  # row r is a direction of zeros, to fill up
    directions, readout = (np.pad(x, ((0, 1), (0, 0))) for x in (directions, readout))
    added = np.concatenate([np.arange(kept[0]), groups.reshape(-1)])
    parts = directions[added], readout[: kept[0]].T, readout[groups].swapaxes(1, 2), predictable
    arguments = [jnp.asarray(x, jnp.float32) for x in parts]
    # On a CPU the running logits of a tile of rows stay in the cache of a core; an accelerator wants large tiles.
    tile = 128 if jax.default_backend() == "cpu" else BLOCK

    def count(some: slice) -> np.ndarray:
        found, finite = _right(for_jit(h[some]), targets[some], *arguments, rows=tile)
        if not finite:
            check_finite("h", jnp.asarray(h[some], jnp.float32), some.start)
        return np.asarray(found)

    right = np.sum(list(side_by_side(count, row_slices(h))), axis=0)
    if kept[0] == 0:  # the same logits for every image
        right[0] = (targets == predictable.argmax()).any(1).sum()
    return right[level] / h.shape[0]


def _classes(subset: Sequence[int] | None, count: int) -> Int[np.ndarray, " s"]:
    """The classes that may be predicted, rising."""
    if subset is None:
        return np.arange(count)
    classes = np.unique(np.asarray(subset))
    if not classes.size or not np.issubdtype(classes.dtype, np.integer) or classes[0] < 0 or classes[-1] >= count:
        raise InputError(f"class_subset: give class numbers from 0 to {count - 1}")
    return classes


def _targets(labels: Labels, images: int, classes: Int[np.ndarray, " s"], count: int) -> Int[np.ndarray, "n k"]:
    """Labels as places in ``classes``, -1 where a row has no more."""
    labels = np.asarray(labels)
    if labels.ndim not in (1, 2) or labels.shape[0] != images or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"labels are {labels.dtype} of shape {labels.shape}: give class numbers [n] or [n, k] of {images} images"
        )
    labels = labels.reshape(images, -1)
    place = np.full(count + 1, -1)  # the last answers for the label -1
    place[classes] = np.arange(len(classes))
    inside = (labels >= -1) & (labels < count)
    targets = place[np.where(inside, labels, -1)]
    wrong = ~inside | ((labels >= 0) & (targets < 0)) | (labels < 0).all(1, keepdims=True)
    if wrong.any():
        row = int(np.flatnonzero(wrong.any(1))[0])
        raise InputError(f"labels: row {row} has {labels[row].tolist()}, which is no class that may be predicted")
    return targets


@jax.jit(static_argnames="rows")
def _right(
    h: Float[Array, "b d"],
    targets: Int[Array, "b k"],
    directions: Float[Array, "k0+g*w d"],
    readout: Float[Array, "c k0"],
    readout_of_steps: Float[Array, "g c w"],
    bias: Float[Array, " c"],
    rows: int,
) -> tuple[Int[Array, " g+1"], Bool[Array, ""]]:
    """How many rows are right with the first k0 directions, and after each of g steps that add w more; and
    whether all of ``h`` is finite.
    """  # noqa: D205
    h = h.astype(jnp.float32)
    finite = all_finite(h)
    padding = -len(h) % rows
    h = jnp.pad(h, ((0, padding), (0, 0)))
    targets = jnp.pad(targets, ((0, padding), (0, 0)), constant_values=-1)
    tiles, first = len(h) // rows, readout.shape[1]
    usual = bias.argmax()  # the class of a row that has nothing of any direction

    def tile(args: tuple[Array, Array]) -> Array:
        # Classes first: a CPU takes their maximum, and a few directions' product, a tenth faster than rows first.
        h, targets = args
        coefficients = jnp.matmul(directions, h.T, precision=EXACT)
        # By numbers in the flat tile: `take_along_axis` takes as long as the products.
        places = jnp.maximum(targets.T, 0) * rows + jnp.arange(rows)

        def right(logits: Float[Array, "c b"], empty: Bool[Array, " b"]) -> Array:
            own = jnp.where(targets.T >= 0, take(logits.reshape(-1), places), -jnp.inf)
            return jnp.where(empty, (targets == usual).any(1), own.max(0) >= logits.max(0))

        def add(state: tuple[Array, Array], step: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
            logits, empty = state
            logits, empty = logits + jnp.matmul(step[1], step[0], precision=EXACT), empty & (step[0] == 0).all(0)
            return (logits, empty), right(logits, empty)

        logits = bias[:, None] + jnp.matmul(readout, coefficients[:first], precision=EXACT)
        empty = (coefficients[:first] == 0).all(0)
        of_steps = coefficients[first:].reshape(*readout_of_steps.shape[::2], rows)
        later = lax.scan(add, (logits, empty), (of_steps, readout_of_steps))[1]
        return jnp.concatenate([right(logits, empty)[None], later]).sum(1)

    found = lax.map(tile, (h.reshape(tiles, rows, -1), targets.reshape(tiles, rows, -1)))
    return found.sum(0), finite
