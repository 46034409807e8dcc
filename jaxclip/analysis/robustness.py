"""Effective robustness: accuracy under shift beyond what a model's ImageNet accuracy predicts."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from jaxclip.data import SHIFTS
from jaxclip.errors import InputError

XAxis = Literal["full", "subset"]
_FULL = "imagenet"
SUBSETS = {shift: f"{_FULL}_on_{shift}" for shift in ("imagenet_r", "objectnet", "imagenet_a")}
"""The columns of ImageNet accuracy on the classes of a shift; the other shifts have all classes."""
COLUMNS = (_FULL, *SHIFTS, *SUBSETS.values())
"""Every column that a table may have beside its models' names."""


class Fit(NamedTuple):
    """One shift's line in logit space, logit(y) = slope · logit(x) + intercept.

    Attributes:
        slope: Of the least-squares line through the baseline models.
        intercept: Of the same.
        r2: Share of the variance of logit(y) that the line explains.
        models: How many baseline models the line goes through.
        excluded: How many it cannot: an accuracy is missing, or 0 or 1, which has no logit.
    """

    slope: float
    intercept: float
    r2: float
    models: int
    excluded: int


class EffectiveRobustness(NamedTuple):
    """The result of :func:`effective_robustness`. Differences of accuracy: 0.1 is ten percentage points.

    Attributes:
        fits: The baseline's line for each shift.
        shift: For each shift, accuracy minus what the line predicts from the x accuracy; NaN where the model's accuracy
            is missing [m].
        shift_interval: For each shift, the ends of the 95 % interval [m, 2].
        mean: Over the shifts; NaN where one is missing, since a mean over fewer is another quantity [m].
        mean_interval: Of the mean [m, 2].
    """

    fits: dict[str, Fit]
    shift: dict[str, Float[np.ndarray, " m"]]
    shift_interval: dict[str, Float[np.ndarray, "m 2"]]
    mean: Float[np.ndarray, " m"]
    mean_interval: Float[np.ndarray, "m 2"]


def effective_robustness(
    accuracies: Mapping[str, Float[Any, " m"]],
    baselines: Mapping[str, Float[Any, " b"]],
    x: XAxis = "full",
    *,
    key: Key[Array, ""] | None = None,
    samples: int = 2000,
    shifts: Sequence[str] = SHIFTS,
) -> EffectiveRobustness:
    """How far models' accuracies under shift lie above the line of the baseline models.

    ER_s(f) = acc_s(f) − σ(a_s · logit(acc_ImageNet(f)) + b_s), with a line a_s, b_s fitted through the baselines.
    Lines are least squares in logit space. Intervals are bootstrap percentiles (2.5 and 97.5) over the baseline models,
    drawn with replacement, the same draw for all shifts: they say how far the choice of baselines moves the result, and
    nothing of the sampling error of the model's own accuracies.

    Args:
        accuracies: Of the models to judge, by column (:class:`jaxclip.accuracies.Accuracies`); a shift that is missing
            gives NaN.
        baselines: Of the models that define "expected"; :func:`jaxclip.accuracies.standard_models` has the usual ones.
        x: ImageNet accuracy over all classes, or (``subset``) over each shift's own classes, which needs the columns
            ``imagenet_on_SHIFT`` for -R, ObjectNet and -A in both tables.
        key: For the bootstrap; ``jax.random.key(0)`` where None.
        samples: How many bootstrap samples.
        shifts: The columns of the shifts, where the study is of another set than ImageNet; that set's accuracy is the
            column ``imagenet`` all the same.

    Raises:
        InputError: A column is missing or of another length, an accuracy is outside 0 to 1, fewer than three
            baseline models have a logit for a shift, or all have one ImageNet accuracy, or an option is none.

    Source: Taori et al. 2020, section 2.
    """
    if x not in get_args(XAxis):
        raise InputError(f"x is {x!r}, not one of {', '.join(get_args(XAxis))}")
    if samples < 1:
        raise InputError(f"samples is {samples}: an interval needs at least one")
    if isinstance(shifts, str) or not shifts:
        raise InputError(f"shifts are {shifts!r}: pass a list of at least one column")
    models = _table("accuracies", accuracies, shifts)
    base = _table("baselines", baselines, shifts)
    horizontal = [x_column(shift, x) for shift in shifts]
    x_models = np.stack([_column("accuracies", models, name) for name in horizontal])
    y_models = np.stack([models.get(shift, np.full_like(models[_FULL], np.nan)) for shift in shifts])
    x_base = np.stack([_column("baselines", base, name) for name in horizontal])
    y_base = np.stack([_column("baselines", base, shift) for shift in shifts])
    usable = (x_base > 0) & (x_base < 1) & (y_base > 0) & (y_base < 1)  # NaN is not
    for shift, count in zip(shifts, usable.sum(1), strict=True):
        if count < 3:
            raise InputError(f"baselines: {count} models have accuracies between 0 and 1 for {shift}: a line needs 3")
    for shift, values, good in zip(shifts, x_base, usable, strict=True):
        if len(set(values[good])) < 2:
            raise InputError(f"baselines: all have the same ImageNet accuracy for {shift}: a line needs two of them")
    logits = [np.where(usable, _logit(values), 0).astype(np.float32) for values in (x_base, y_base)]
    lines, point, interval, mean_interval = jax.device_get(
        _fit_and_judge(
            *map(jnp.asarray, (*logits, usable, _logit(x_models), y_models)),
            jax.random.key(0) if key is None else key,
            samples,
        )
    )
    fits = {
        shift: Fit(float(slope), float(intercept), float(r2), int(good.sum()), int((~good).sum()))
        for shift, slope, intercept, r2, good in zip(shifts, *lines, usable, strict=True)
    }
    return EffectiveRobustness(
        fits=fits,
        shift=dict(zip(shifts, point, strict=True)),
        shift_interval=dict(zip(shifts, interval.transpose(1, 2, 0), strict=True)),
        mean=point.mean(0),
        mean_interval=mean_interval.T,
    )


def x_column(shift: str, x: XAxis) -> str:
    """The column with the ImageNet accuracy that predicts the accuracy under ``shift``."""
    return SUBSETS.get(shift, _FULL) if x == "subset" else _FULL


def predicted_accuracy(x: Float[Any, "..."], fit: Fit) -> Float[np.ndarray, "..."]:
    """What the baseline's line expects under shift of models with ImageNet accuracy ``x``."""
    return np.asarray(jax.nn.sigmoid(fit.slope * _logit(np.asarray(x, np.float64)) + fit.intercept))


def _table(name: str, columns: Mapping[str, Any], shifts: Sequence[str]) -> dict[str, np.ndarray]:
    """The columns as float64 of equal length, checked."""
    table = {column: np.asarray(values, np.float64).reshape(-1) for column, values in columns.items()}
    known = (_FULL, *shifts, *(SUBSETS[shift] for shift in shifts if shift in SUBSETS))
    if unknown := sorted(set(table) - set(known)):
        raise InputError(f"{name}: unknown column {unknown[0]!r}; known are {', '.join(known)}")
    length = len(_column(name, table, _FULL))
    for column, values in table.items():
        if len(values) != length:
            raise InputError(f"{name}: column {column!r} has {len(values)} models, and {_FULL!r} has {length}")
        if bad := np.flatnonzero((values < 0) | (values > 1) | np.isinf(values)).tolist():
            raise InputError(f"{name}: row {bad[0]} of {column!r} is {values[bad[0]]}, not an accuracy from 0 to 1")
    return table


def _column(name: str, table: dict[str, np.ndarray], column: str) -> np.ndarray:
    if column not in table:
        raise InputError(f"{name}: column {column!r} is missing; there are {', '.join(table) or 'none'}")
    return table[column]


def _logit(accuracy: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    with np.errstate(divide="ignore"):
        return np.log(accuracy) - np.log1p(-accuracy)


Line = tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]


def _line(x: Float[Array, " b"], y: Float[Array, " b"], weight: Float[Array, " b"]) -> Line:
    """Slope, intercept and R² of the weighted least-squares line; NaN where all that has weight has one x."""
    total, one = weight.sum(), x[jnp.argmax(weight)]
    x = x - one  # so that equal ones are 0, whatever their mean would be rounded to
    mean_x, mean_y = (weight * x).sum() / total, (weight * y).sum() / total
    dx, dy = x - mean_x, y - mean_y
    xx, xy, yy = (weight * dx * dx).sum(), (weight * dx * dy).sum(), (weight * dy * dy).sum()
    slope = xy / xx
    return slope, mean_y - slope * (mean_x + one), xy * xy / (xx * yy)


@jax.jit(static_argnames="samples")
def _fit_and_judge(
    x_base: Float[Array, "s b"],
    y_base: Float[Array, "s b"],
    usable: Bool[Array, "s b"],
    x_logit: Float[Array, "s m"],
    y: Float[Array, "s m"],
    key: Key[Array, ""],
    samples: int,
) -> tuple[Line, Float[Array, "s m"], Float[Array, "2 s m"], Float[Array, "2 m"]]:
    """The lines [s], the effective robustness, and the bootstrap intervals of it and of its mean over shifts."""

    def judge(times: Int[Array, " b"]) -> tuple[Line, Float[Array, "s m"]]:
        line = jax.vmap(_line)(x_base, y_base, usable * times.astype(jnp.float32))
        return line, y - jax.nn.sigmoid(line[0][:, None] * x_logit + line[1][:, None])

    def resample(key: Key[Array, ""]) -> Float[Array, "s m"]:
        count = usable.shape[1]
        return judge(jnp.bincount(jax.random.randint(key, (count,), 0, count, jnp.int32), length=count))[1]

    line, point = judge(jnp.ones(usable.shape[1], jnp.int32))
    sampled = lax.map(resample, jax.random.split(key, samples), batch_size=250)
    ends = jnp.array([0.025, 0.975])
    # A sample that draws one baseline only has no line and is left out.
    return line, point, jnp.nanquantile(sampled, ends, axis=0), jnp.nanquantile(sampled.mean(1), ends, axis=0)
