"""What every analysis does with awkward numbers, in matrices of the size that they are used on."""

import re
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import analysis
from jaxclip.analysis import (
    activation_kurtosis,
    average_precision,
    concept_counts,
    effective_robustness,
    linear_cka,
    outlier_features,
    privileged_directions,
    prune_sweep,
)
from jaxclip.errors import InputError

N, D, C = 4500, 64, 10
RNG = np.random.default_rng(0)
H = RNG.standard_normal((N, D)).astype(np.float32)
W = RNG.standard_normal((C, D)).astype(np.float32)
LABELS = (H @ W.T).argmax(1)
CONCEPTS = (RNG.random((N, 3)) < 0.1).astype(int)
ANALYSES: dict[str, Callable[[np.ndarray], object]] = {
    "activation_kurtosis": activation_kurtosis,
    "outlier_features": outlier_features,
    "privileged_directions": lambda h: privileged_directions(W, h),
    "prune_sweep": lambda h: prune_sweep(W, h, LABELS, [0, 0.5], privileged_directions(W, H)),
    "average_precision": lambda h: average_precision(h, CONCEPTS),
    "concept_counts": lambda h: concept_counts(h, CONCEPTS, np.eye(D), key=jax.random.key(0)),
    "linear_cka": lambda h: linear_cka(h, H),
}


def test_analyses_know_no_pictures() -> None:
    """Arrays in, arrays out: neither data sets, nor encoders, nor a store."""
    for path in Path(str(analysis.__file__)).parent.glob("*.py"):
        imported = set(re.findall(r"^from jaxclip\.(\w+)", path.read_text(), re.MULTILINE))
        assert imported <= {"analysis", "data", "errors", "machine"}, path.name


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ANALYSES)
def test_a_number_that_is_none_is_found_in_a_large_matrix(name: str, value: float) -> None:
    """XLA's maximum on a CPU passes over NaN from some 4,000 numbers on: half the rows were, and nothing said so."""
    h = H.copy()
    h[4321, 7] = value
    with pytest.raises(InputError, match="row 4321 has a NaN"):
        ANALYSES[name](h)


@pytest.mark.parametrize("name", ANALYSES)
def test_a_traced_matrix_is_refused(name: str) -> None:
    """Kurtosis told of a side effect and a leaked tracer, which its caller could do nothing about."""
    analysis = (ANALYSES | {"prune_sweep": lambda h: prune_sweep(W, h, LABELS, [0, 0.5])})[name]
    for transformed, h in ((jax.jit(analysis), H), (jax.vmap(analysis), H[None])):
        with pytest.raises(InputError, match=r"is traced.*outside of jit, grad and vmap"):
            transformed(h)


def test_draws_do_not_depend_on_the_bits_of_jax() -> None:
    """With 64-bit types on, one key gave other random directions and another bootstrap: other baselines, intervals."""
    accuracies = {"imagenet": np.linspace(0.3, 0.8, 9), "imagenet_v2": np.linspace(0.3, 0.7, 9) ** 1.1}

    def drawn() -> list[np.ndarray]:
        counts = concept_counts(H[:500], CONCEPTS[:500], np.eye(D)[:8], key=jax.random.key(0))
        robustness = effective_robustness(accuracies, accuracies, shifts=["imagenet_v2"], samples=50)
        return [
            counts.random_directions.average_precision,
            counts.permuted_labels.average_precision,
            robustness.mean_interval,
        ]

    usual = drawn()
    with jax.enable_x64(True):
        for found, wanted in zip(drawn(), usual, strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("name", ["activation_kurtosis", "outlier_features", "prune_sweep", "linear_cka"])
def test_whole_numbers_of_64_bits(name: str) -> None:
    """They are numbers, not what is left of them in 32 bits."""
    whole = (H * 2.0**40).astype(np.int64)
    for found, wanted in zip(
        jax.tree.leaves(ANALYSES[name](whole)), jax.tree.leaves(ANALYSES[name](whole.astype(np.float32))), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("name", ANALYSES)
def test_numbers_of_any_kind_are_the_same_numbers(name: str) -> None:
    """Big-endian files gave other accuracies of pruning, silently; lists, tensors and wide floats Python's errors."""
    wanted = jax.tree.leaves(ANALYSES[name](H))
    tensor = pytest.importorskip("torch").from_numpy(H)
    for h in (H.astype(">f4"), H.astype(np.longdouble), H.tolist(), tensor):
        for found, right in zip(jax.tree.leaves(ANALYSES[name](h)), wanted, strict=True):
            if isinstance(right, np.ndarray | jax.Array | float):
                np.testing.assert_allclose(found, right, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-25, 1e-18, 1e17, 1e25])
def test_cka_does_not_depend_on_scale(scale: float) -> None:
    """Not where the products of a float32 are 0 or infinite either."""
    a = H + RNG.standard_normal((N, D)).astype(np.float32)
    assert linear_cka(a * np.float32(scale), H) == pytest.approx(linear_cka(a, H), rel=1e-6)
    assert linear_cka(a * np.float32(scale), H * np.float32(1 / scale)) == pytest.approx(linear_cka(a, H), rel=1e-6)


@pytest.mark.parametrize(
    ("scale", "way"), [(1e-30, "up"), (1e-20, "up"), (1e-16, "up"), (4e18, "down"), (1e20, "down"), (1e30, "down")]
)
@pytest.mark.parametrize("function", [activation_kurtosis, outlier_features])
def test_kurtosis_of_numbers_without_squares_is_refused(function: Callable, scale: float, way: str) -> None:
    """Their squares, or at 4e18 the sum of these alone (which gave 0), are 0 or infinite in float32."""
    h = H.copy()
    h[17] = 3  # constant, which is no reason to refuse
    h[4321] *= np.float32(scale)
    with pytest.raises(InputError, match=rf"row 4321 .*scale the representations {way}"):
        function(h)


def test_kurtosis_of_small_and_large_numbers() -> None:
    """What float32 can square has its kurtosis, and a row of equal numbers, however small, none."""
    for scale in (1e-13, 1e13, 1e17):
        np.testing.assert_allclose(activation_kurtosis(H * np.float32(scale)), activation_kurtosis(H), rtol=1e-5)
    h = H.copy()
    h[5] = 1e-20
    assert np.flatnonzero(np.isnan(activation_kurtosis(h))).tolist() == [5]


def test_a_row_of_zeros_is_of_the_first_class() -> None:
    """As in accuracy: all logits tie, and argmax takes the first; with a bias the class of the largest."""
    h = H.copy()
    h[::2] = 0
    bias = np.arange(C, dtype=np.float32)[::-1] * 0
    for offset, usual in ((bias, 0), (np.eye(C, dtype=np.float32)[3], 3)):
        logits = h @ W.T + offset
        right = (logits.argmax(1) == LABELS).mean()
        assert (logits[::2].argmax(1) == usual).all()
        assert prune_sweep(W, h, LABELS, [0.0], bias=offset)[0] == pytest.approx(right, abs=1e-12)


def test_directions_whose_singular_values_are_close() -> None:
    """Float32's decomposition mixes them; these are those of float64."""
    rng = np.random.default_rng(1)
    head = (rng.standard_normal((300, 200)) + 5 * rng.standard_normal(200)).astype(np.float32)
    v = np.linalg.svd(head.astype(np.float64), full_matrices=False)[2]
    found = privileged_directions(head, rng.standard_normal((50, 200)).astype(np.float32)).directions
    assert np.abs(np.einsum("rd,rd->r", found, v)).min() > 1 - 1e-6


def test_a_threshold_is_of_the_type_of_what_it_is_compared_with() -> None:
    """0.9 of numpy is not the 0.9 of float32: a count and the count over thresholds differed."""
    counts = concept_counts(H, CONCEPTS, np.eye(D), key=jax.random.key(0)).directions
    best = float(jnp.asarray(counts.average_precision).max())
    for threshold in (best, np.float64(np.float32(best)) * (1 + 1e-9)):
        one = type(counts)(counts.average_precision, counts.sign, threshold)
        assert one.unique == one.unique_over([threshold])[0]
