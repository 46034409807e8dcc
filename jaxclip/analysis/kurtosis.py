"""Outlier features: a few coordinates that are far larger than the rest, measured by the kurtosis over coordinates."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxclip.analysis.rows import AnyArray, check_finite, for_jit, matrix, row_slices, side_by_side
from jaxclip.errors import InputError

SMALL = 1e-15
"""Standard deviations below which the squares may be 0 in float32."""
LEAST_RATIO = float(np.finfo(np.float32).max) * SMALL**2
"""What overflows in float32 when divided by the variance of such a deviation."""


class OutlierFeatures(NamedTuple):
    """What :func:`outlier_features` finds in a representation of d features.

    Attributes:
        mean_abs: Mean |h_i| over the images, in the representation's own units [d].
        share: Share of images, 0 to 1, where |h_i| exceeds ``threshold`` standard deviations of that image [d].
        features: Every feature with a share above 0, the largest share first (of equals, the larger ``mean_abs``) [k].
    """

    mean_abs: Float[np.ndarray, " d"]
    share: Float[np.ndarray, " d"]
    features: Int[np.ndarray, " k"]


class ActivationSummary(NamedTuple):
    """The result of :class:`ActivationStats`.

    Attributes:
        kurtosis: Mean over the images of κ(x); 3 is what normal activations give. NaN where no image has one.
        standard_error: Of that mean: sample standard deviation / √images; NaN below two images.
        images: How many images were seen.
        constant: How many of them have all features equal. κ is undefined there, so they are not in the mean; they
            count as images without an outlier in ``outliers``.
        outliers: The outlier features.
    """

    kurtosis: float
    standard_error: float
    images: int
    constant: int
    outliers: OutlierFeatures


def activation_kurtosis(h: Float[AnyArray, "n d"]) -> Float[Array, " n"]:
    """κ(x) = (1/d) Σ_i ((h_i − mean)/std)⁴ over the d features of each image: how much a few features stand out.

    Population moments, and not excess kurtosis: normal activations give 3, one huge feature gives about d. Shifting or
    scaling h changes nothing. Agrees with ``scipy.stats.kurtosis(h, axis=1, fisher=False)`` to a relative 1e-5 even
    when the mean is 10,000 standard deviations away from 0 (each image is centred on its first feature, then on its
    mean).

    Args:
        h: Representations, one row for each image; computed in float32.

    Returns:
        One number for each image; NaN for a row whose features are all equal (or d = 1), which has no kurtosis.

    Raises:
        InputError: ``h`` is not a matrix; or a row has a NaN, an infinity, or squares too large or too small for
            float32 (the message names the row).

    Source: Crabbé et al. 2024, section 3.
    """
    h = matrix("h", h)

    def of_rows(rows: slice) -> Array:
        kurtosis = _kurtosis(for_jit(h[rows]))
        _check(h, kurtosis, rows)
        return kurtosis

    return jnp.concatenate(list(side_by_side(of_rows, row_slices(h))))


def outlier_features(h: Float[AnyArray, "n d"], threshold: float = 6.0) -> OutlierFeatures:
    """Which coordinates are outliers: mean |h_i|, and the share of images where |h_i| > threshold · std(h(x)).

    The standard deviation is the image's own, over its d features (population). To be listed, a feature needs one
    image; the order and ``share`` tell the steady outliers (share near 1 in CLIP) from a chance one.

    Args:
        h: Representations, one row for each image.
        threshold: In standard deviations of the image's activations.

    Raises:
        InputError: As :func:`activation_kurtosis`; or the threshold is not positive.
    """
    h = matrix("h", h)
    return ActivationStats.empty(h.shape[1], threshold).update(h).result().outliers


@dataclasses.dataclass(frozen=True)
class ActivationStats:
    """Running kurtosis and outlier features, for representations that are streamed or sharded.

    ``stats = stats.update(block)`` for each block of rows; ``a.merge(b)`` joins two shards or hosts in any order;
    ``result()`` ends it. States are values: nothing is changed in place. Sums inside a block are float32 on the device,
    sums over blocks float64 on the host, so that the error does not grow with the number of images.

    Attributes:
        threshold: As in :func:`outlier_features`.
        images: Rows seen.
        defined: Rows that have a kurtosis.
        mean: Mean of κ over those.
        squares: Σ (κ − mean)² over those.
        sum_abs: Σ |h_i| over the rows [d].
        above: Number of rows where |h_i| exceeds the threshold [d].
    """

    threshold: float
    images: int
    defined: int
    mean: float
    squares: float
    sum_abs: Float[np.ndarray, " d"]
    above: Int[np.ndarray, " d"]

    @classmethod
    def empty(cls, features: int, threshold: float = 6.0) -> "ActivationStats":
        """No image yet, of representations with ``features`` coordinates.

        Raises:
            InputError: ``threshold`` is not positive.
        """
        if not threshold > 0:
            raise InputError(f"threshold is {threshold}: give a positive number of standard deviations")
        return cls(threshold, 0, 0, 0.0, 0.0, np.zeros(features), np.zeros(features, np.int64))

    def update(self, h: Float[AnyArray, "n d"]) -> "ActivationStats":
        """With the rows of ``h`` added.

        Raises:
            InputError: As :func:`activation_kurtosis`; or the number of features differs.
        """
        h = matrix("h", h, len(self.sum_abs))
        parts = side_by_side(lambda rows: _of_rows(h, rows, self.threshold), row_slices(h))
        return functools.reduce(ActivationStats.merge, parts, self)

    def merge(self, other: "ActivationStats") -> "ActivationStats":
        """Both together, as if one had seen the rows of both (Chan, Golub and LeVeque 1983).

        Raises:
            InputError: They differ in threshold or in number of features.
        """
        if (self.threshold, len(self.sum_abs)) != (other.threshold, len(other.sum_abs)):
            raise InputError("merge: the two states differ in threshold or in number of features")
        defined = self.defined + other.defined
        weight = other.defined / max(defined, 1)
        gap = other.mean - self.mean
        return ActivationStats(
            self.threshold,
            self.images + other.images,
            defined,
            self.mean + weight * gap,
            self.squares + other.squares + self.defined * weight * gap**2,
            self.sum_abs + other.sum_abs,
            self.above + other.above,
        )

    def result(self) -> ActivationSummary:
        """The statistics of all rows so far.

        Raises:
            InputError: There was none.
        """
        if not self.images:
            raise InputError("no representation was given, so there are no activation statistics")
        mean_abs, share = self.sum_abs / self.images, self.above / self.images
        order = np.lexsort((-mean_abs, -share))
        outliers = OutlierFeatures(mean_abs, share, order[share[order] > 0])
        variance = self.squares / (self.defined - 1) if self.defined > 1 else math.nan
        return ActivationSummary(
            kurtosis=self.mean if self.defined else math.nan,
            standard_error=math.sqrt(variance / self.defined) if self.defined > 1 else math.nan,
            images=self.images,
            constant=self.images - self.defined,
            outliers=outliers,
        )


def _of_rows(h: AnyArray, rows: slice, threshold: float) -> ActivationStats:
    kurtosis, sum_abs, above = jax.device_get(_block_sums(for_jit(h[rows]), threshold))
    _check(h, kurtosis, rows)
    defined = kurtosis[~np.isnan(kurtosis)].astype(np.float64)
    mean = float(defined.mean()) if defined.size else 0.0
    squares = float(np.square(defined - mean).sum())
    return ActivationStats(
        threshold, len(kurtosis), defined.size, mean, squares, sum_abs.astype(np.float64), above.astype(np.int64)
    )


def _check(h: AnyArray, kurtosis: Float[Any, " b"], rows: slice) -> None:
    """Raises InputError for a row without kurtosis that is not constant: only blocks with such a row are read again."""
    without = rows.start + np.flatnonzero(np.isnan(kurtosis))
    if not without.size:
        return
    check_finite("h", jnp.asarray(h[rows], jnp.float32), rows.start)
    values = np.asarray(h[without], np.float64)
    varies = np.ptp(values, axis=1) > 0
    if varies.any():
        what, way = ("exceed float32", "down") if values[varies][0].std() > 1 else ("float32 takes for 0", "up")
        raise InputError(
            f"h: row {without[varies][0]} has values whose squares {what}: scale the representations {way}"
        )


def _squares(h: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """(h_i − mean)² of each row."""
    h = h.astype(jnp.float32)
    centred = h - h[:, :1]  # exact where all are equal, so that a constant row has a deviation of exactly 0
    return jnp.square(centred - centred.mean(1, keepdims=True))


@jax.jit
def _kurtosis(h: Float[Array, "b d"]) -> Float[Array, " b"]:
    """Of each row; NaN where the deviation is 0, below ``SMALL`` or not finite in float32.

    Without a second output, and by sums rather than by a choice among arrays, XLA's CPU backend makes one loop of it.
    """
    squares = _squares(h)
    variance = squares.mean(1, keepdims=True)
    variance += 0 * variance + 0 * (LEAST_RATIO / variance)  # 0 · ∞ is NaN
    return jnp.square(squares / variance).mean(1)


@jax.jit
def _block_sums(h: Float[Array, "b d"], threshold: float) -> tuple[Any, Any, Any]:
    h = h.astype(jnp.float32)
    deviation = jnp.sqrt(_squares(h).mean(1, keepdims=True))
    above = (jnp.abs(h) > threshold * deviation) & (deviation > 0)
    return _kurtosis(h), jnp.abs(h).sum(0), above.sum(0)
