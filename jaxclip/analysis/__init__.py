"""The paper's analyses: pure functions from arrays to small results, in JAX.

Each quantity is a file, whose docstrings have its formula and its source. Functions whose input may exceed memory have
a running form with ``update``, ``merge`` and ``result`` (:class:`ActivationStats`, :class:`DirectionImportance`,
:class:`LinearCKA`): a state is a small frozen dataclass of numpy arrays, so that it can be pickled, sent between hosts
and merged in any order.

Numbers: inputs are read as float32 and multiplied at the highest precision of the device; sums over more than a few
thousand rows are taken block by block in float64 on the host, without enabling 64-bit types in JAX at large. So the
functions compile what they need themselves, and are not to be called under ``jit``, ``grad`` or ``vmap``.
"""

from jaxclip.analysis.average_precision import average_precision
from jaxclip.analysis.cka import LinearCKA, linear_cka
from jaxclip.analysis.concepts import ConceptCounts, EncodedConcepts, concept_counts
from jaxclip.analysis.directions import (
    DirectionImportance,
    PrivilegedDirections,
    largest_coordinates,
    privileged_directions,
)
from jaxclip.analysis.kurtosis import (
    ActivationStats,
    ActivationSummary,
    OutlierFeatures,
    activation_kurtosis,
    outlier_features,
)
from jaxclip.analysis.pruning import prune_sweep
from jaxclip.analysis.robustness import (
    SHIFTS,
    EffectiveRobustness,
    Fit,
    effective_robustness,
    predicted_accuracy,
)

__all__ = [
    "SHIFTS",
    "ActivationStats",
    "ActivationSummary",
    "ConceptCounts",
    "DirectionImportance",
    "EffectiveRobustness",
    "EncodedConcepts",
    "Fit",
    "LinearCKA",
    "OutlierFeatures",
    "PrivilegedDirections",
    "activation_kurtosis",
    "average_precision",
    "concept_counts",
    "effective_robustness",
    "largest_coordinates",
    "linear_cka",
    "outlier_features",
    "predicted_accuracy",
    "privileged_directions",
    "prune_sweep",
]
