"""Privileged directions: which directions of representation space the head reads, and how much it does."""

import dataclasses
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxclip.analysis.rows import EXACT, AnyArray, blocks, matrix
from jaxclip.errors import InputError

Importance = Literal["cosine", "projection"]


class PrivilegedDirections(NamedTuple):
    """The singular directions of a head W [c, d], with r = min(c, d), and how much the head reads along each.

    Attributes:
        singular_values: σ_i, falling [r].
        directions: Rows are the right singular vectors v_i, of length 1; the sign is such that the coordinate of
            largest magnitude is positive [r, d].
        class_directions: Rows are the left singular vectors u_i: W = Σ_i σ_i u_i v_iᵀ [r, c].
        importance: Of each direction, in the order of the singular values [r].
        order: The directions, the most important first [r].
        max_over_mean: The largest importance over the mean one: how privileged the first direction is.
        kurtosis: Kurtosis of the importance over the directions (population, not excess); NaN where all are equal.
    """

    singular_values: Float[np.ndarray, " r"]
    directions: Float[np.ndarray, "r d"]
    class_directions: Float[np.ndarray, "r c"]
    importance: Float[np.ndarray, " r"]
    order: Int[np.ndarray, " r"]
    max_over_mean: float
    kurtosis: float


def privileged_directions(
    W: Float[AnyArray, "c d"], h: Float[AnyArray, "n d"], importance: Importance = "cosine"
) -> PrivilegedDirections:
    """The head's singular directions, ranked by how much of the head's output passes through each.

    Importance(i) = σ_i · mean_x |cos(v_i, h(x))|, or with ``projection`` σ_i · mean_x |⟨v_i, h(x)⟩|. A direction far
    above the rest is privileged: few are, and they carry the zero-shot CLIPs' outlier features.

    Args:
        W: The head, without its bias.
        h: Representations of the images that importance is measured on.
        importance: Which of the two; ``cosine`` disregards the length of h(x).

    Raises:
        InputError: Shapes do not fit, a value is NaN or infinite (the message names the row), or ``importance`` is
            neither of the two.

    Source: Crabbé et al. 2024, section 3.
    """
    h = matrix("h", h)  # before the head is decomposed
    return DirectionImportance.empty(W, importance).update(h).result()


@dataclasses.dataclass(frozen=True)
class DirectionImportance:
    """Running importance of a head's directions, for representations that are streamed or sharded.

    The use is that of :class:`jaxclip.analysis.ActivationStats`: ``update``, ``merge``, ``result``.

    Attributes:
        kind: Which importance.
        singular_values: [r].
        directions: [r, d].
        class_directions: [r, c].
        images: Rows seen.
        total: Σ_x |cos(v_i, h(x))| or Σ_x |⟨v_i, h(x)⟩|, float64 [r].
    """

    kind: Importance
    singular_values: Float[np.ndarray, " r"]
    directions: Float[np.ndarray, "r d"]
    class_directions: Float[np.ndarray, "r c"]
    images: int
    total: Float[np.ndarray, " r"]

    @classmethod
    def empty(cls, W: Float[AnyArray, "c d"], importance: Importance = "cosine") -> "DirectionImportance":
        """No image yet; the singular value decomposition of the head is done here.

        Raises:
            InputError: ``W`` is not a matrix of finite numbers, or ``importance`` is neither of the two.
        """
        if importance not in get_args(Importance):
            raise InputError(f"importance is {importance!r}, not one of {', '.join(get_args(Importance))}")
        head = jnp.concatenate([block for _, block in blocks("W", matrix("W", W))])
        u, sigma, v = _svd(np.asarray(head, np.float64))
        return cls(importance, sigma, v, u, 0, np.zeros(len(sigma)))

    def update(self, h: Float[AnyArray, "n d"]) -> "DirectionImportance":
        """With the rows of ``h`` added; a row of zeros counts as at right angles to all directions.

        Raises:
            InputError: ``h`` is not a matrix of finite numbers, or not of the directions' width.
        """
        h, total = matrix("h", h, self.directions.shape[1]), self.total
        directions = jnp.asarray(self.directions)
        for _, block in blocks("h", h):
            total = total + np.asarray(_alignment(block, directions, self.kind == "cosine"), np.float64)
        return dataclasses.replace(self, images=self.images + h.shape[0], total=total)

    def merge(self, other: "DirectionImportance") -> "DirectionImportance":
        """Both together, as if one had seen the rows of both.

        Raises:
            InputError: They are of different heads, or of different kinds of importance.
        """
        if self.kind != other.kind or not np.array_equal(self.directions, other.directions):
            raise InputError("merge: the two states are of different heads or kinds of importance")
        return dataclasses.replace(self, images=self.images + other.images, total=self.total + other.total)

    def result(self) -> PrivilegedDirections:
        """The importance over all rows so far.

        Raises:
            InputError: There was none.
        """
        if not self.images:
            raise InputError("no representation was given, so directions have no importance")
        importance = self.singular_values * self.total / self.images
        mean = importance.mean()
        centred = importance - mean
        variance = np.square(centred).mean()
        return PrivilegedDirections(
            self.singular_values,
            self.directions,
            self.class_directions,
            importance,
            np.argsort(-importance, kind="stable"),
            float(importance.max() / mean) if mean else float("nan"),
            float((centred**4).mean() / variance**2) if variance else float("nan"),
        )


def largest_coordinates(directions: Float[Any, "r d"], k: int = 5) -> tuple[Int[np.ndarray, "r k"], Any]:
    """The features that each direction loads on most: the link from a privileged direction to outlier features.

    Args:
        directions: One in each row.
        k: How many features to name; all of them where d is smaller.

    Returns:
        Feature numbers and the coordinates there (with their sign), largest magnitude first, both [r, k].
    """
    directions = np.asarray(directions)
    features = np.argsort(-np.abs(directions), axis=1, kind="stable")[:, :k]
    return features, np.take_along_axis(directions, features, axis=1)


def _svd(W: Float[np.ndarray, "c d"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """In float64, as float32 mixes directions whose singular values are close by a degree or more."""
    u, sigma, v = np.linalg.svd(W, full_matrices=False)
    largest = np.take_along_axis(v, np.abs(v).argmax(1)[:, None], axis=1)
    sign = np.where(largest < 0, -1.0, 1.0)
    return (u.T * sign).astype(np.float32), sigma.astype(np.float32), (v * sign).astype(np.float32)


@jax.jit(static_argnames="cosine")
def _alignment(h: Float[Array, "b d"], directions: Float[Array, "r d"], cosine: bool) -> Float[Array, " r"]:
    """Σ over the rows of |⟨v_i, h⟩|, each divided by the row's length where ``cosine``."""
    if cosine:
        h = h / jnp.abs(h).max(1, keepdims=True, initial=jnp.finfo(h.dtype).tiny)  # or squares may over- or underflow
        length = jnp.linalg.norm(h, axis=1, keepdims=True)
        h = jnp.where(length > 0, h / length, 0)
    return jnp.abs(jnp.matmul(h, directions.T, precision=EXACT)).sum(0)
