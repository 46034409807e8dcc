"""Kurtosis and outlier features against scipy and planted truth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxclip.analysis import ActivationStats, activation_kurtosis, outlier_features
from jaxclip.errors import InputError

few = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def normal(seed: int, n: int = 12, d: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


@pytest.mark.parametrize("distribution", ["normal", "student", "offset", "tiny", "huge", "outlier", "skewed"])
def test_kurtosis_is_scipy_s(distribution):
    """Population kurtosis, not excess: else every number of the kurtosis table is off by 3 or by a factor."""
    random = np.random.default_rng(0)
    h = random.standard_t(3, (300, 512)) if distribution == "student" else random.standard_normal((300, 512))
    h = {"offset": h + 1e4, "tiny": h * 1e-12, "huge": h * 1e12}.get(distribution, h).astype(np.float32)
    if distribution == "outlier":
        h[:, 0] += 1e5  # the feature that rows are centred on first is the one that is far from the rest
    if distribution == "skewed":
        h = np.exp(2 * h) + np.float32(1e4)
    expected = stats.kurtosis(h.astype(np.float64), axis=1, fisher=False)
    np.testing.assert_allclose(activation_kurtosis(h), expected, rtol=1e-5)


@few
@given(seeds, st.floats(0.01, 100), st.floats(-10, 10))
def test_kurtosis_is_blind_to_scale_shift_and_order_of_features(seed, scale, shift):
    """Kurtosis measures shape alone: else models with larger activations would seem to have more outliers."""
    h = normal(seed)
    order = np.random.default_rng(seed).permutation(h.shape[1])
    changed = activation_kurtosis((h * scale + shift * scale)[:, order])
    np.testing.assert_allclose(changed, activation_kurtosis(h), rtol=2e-3)


def test_constant_rows_have_no_kurtosis():
    """A constant row (also d = 1) is NaN as in scipy; it is counted, and does not poison the mean."""
    h = normal(0)
    h[3] = 0.1
    assert np.flatnonzero(np.isnan(activation_kurtosis(h))).tolist() == [3]
    assert np.isnan(activation_kurtosis(h[:, :1])).all()
    summary = ActivationStats.empty(h.shape[1]).update(h).result()
    assert (summary.images, summary.constant) == (12, 1)
    expected = stats.kurtosis(np.delete(h, 3, 0), axis=1, fisher=False)
    assert summary.kurtosis == pytest.approx(expected.mean(), rel=1e-5)
    assert summary.standard_error == pytest.approx(stats.sem(expected), rel=1e-4)


def test_one_image():
    """One image has a mean and no standard error, rather than an error of 0."""
    summary = ActivationStats.empty(24).update(normal(1, n=1)).result()
    assert summary.kurtosis > 0 and np.isnan(summary.standard_error)


@few
@given(seeds, st.sampled_from([1, 5]), st.booleans())
def test_stream_equals_whole_in_any_order(seed, cut, swap):
    """Shards merged in either order give what all rows give at once: else results depend on the number of hosts."""
    h = normal(seed)
    h[:, 5] += 40
    empty = ActivationStats.empty(h.shape[1])
    parts = [empty.update(h[:cut]), empty.update(h[cut:])]
    merged = (parts[1].merge(parts[0]) if swap else parts[0].merge(parts[1])).merge(empty).result()
    whole = empty.update(h).result()
    for got, want in zip(merged[:4], whole[:4], strict=True):
        assert got == pytest.approx(want, rel=1e-5)
    np.testing.assert_allclose(merged.outliers.mean_abs, whole.outliers.mean_abs, rtol=1e-6)
    np.testing.assert_array_equal(merged.outliers.share, whole.outliers.share)


def test_blocks_are_joined_in_float64():
    """Many blocks far from 0: mean |h| keeps float32's digits, which a running float32 sum loses."""
    h = (1000 + np.random.default_rng(0).standard_normal((20_000, 8))).astype(np.float32)
    found = ActivationStats.empty(8).update(h).result().outliers.mean_abs
    np.testing.assert_allclose(found, np.abs(h.astype(np.float64)).mean(0), rtol=3e-6)


def test_planted_outlier_features_are_found():
    """Two planted outlier coordinates, one in every image and one in a quarter, are listed in that order and alone."""
    h = normal(2, n=400, d=256) / 10
    h[:, 133] = 9
    h[::4, 77] = -5
    found = outlier_features(h)
    assert found.features.tolist() == [133, 77]
    assert found.share[[133, 77]].tolist() == [1, 0.25]
    np.testing.assert_allclose(found.mean_abs, np.abs(h).mean(0), rtol=1e-5)
    above = (np.abs(h) > 6 * h.std(1, keepdims=True)).mean(0)
    np.testing.assert_allclose(found.share, above, err_msg="threshold is not on |h| over the image's own deviation")
    assert outlier_features(h, threshold=1e3).features.size == 0


def test_outlier_features_are_the_definition_s():
    """Of heavy-tailed activations with a mean, share and order are numpy's: |h_i|, not centred, over the image's own
    population deviation; all images count, also constant ones, which have no outlier; of equal shares the larger first.
    """
    h = (np.random.default_rng(3).standard_t(3, (200, 24)) + 0.7).astype(np.float32)
    h[:, 7], h[:, 19] = 30, -40  # outliers in all images but the constant ones
    h[5], h[90] = 2.5, 0
    deviation = h.astype(np.float64).std(1, keepdims=True)
    share = ((np.abs(h) > 0.4 * deviation) & (deviation > 0)).mean(0)
    found = outlier_features(h, threshold=0.4)
    np.testing.assert_array_equal(found.share, share)
    assert 0 < np.sort(share)[-3] < share[7] == share[19] == 0.99, "the case tests nothing"
    mean = np.abs(h.astype(np.float64)).mean(0)
    np.testing.assert_allclose(found.mean_abs, mean, rtol=1e-6)
    assert found.features.tolist() == sorted(range(24), key=lambda i: (-share[i], -mean[i]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("function", [activation_kurtosis, outlier_features])
def test_bad_row_is_named(function, bad):
    """NaN and infinity are errors that name the row, in the second block too."""
    h = np.zeros((5000, 3), np.float32)
    h[:, 0] = 1
    h[4321, 2] = bad
    with pytest.raises(InputError, match="row 4321"):
        function(h)


def test_bad_shapes():
    """A vector, an empty matrix, another width, a threshold of 0: each one clear error."""
    for h in (np.zeros(3), np.zeros((0, 3)), np.zeros((3, 0)), np.array([["a"]])):
        with pytest.raises(InputError, match="h "):
            activation_kurtosis(h)
    with pytest.raises(InputError, match="2 columns where 3"):
        ActivationStats.empty(3).update(np.ones((1, 2)))
    with pytest.raises(InputError, match="threshold"):
        outlier_features(np.ones((1, 2)), threshold=0)
    with pytest.raises(InputError, match="no representation"):
        ActivationStats.empty(3).result()
    with pytest.raises(InputError, match="differ"):
        ActivationStats.empty(3).merge(ActivationStats.empty(4))
