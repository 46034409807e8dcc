"""Privileged directions and pruning against numpy and planted truth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxclip.analysis import DirectionImportance, largest_coordinates, privileged_directions, prune_sweep
from jaxclip.errors import InputError

few = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def problem(seed: int, n: int = 40, c: int = 11, d: int = 7) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    W = random.standard_normal((c, d)).astype(np.float32)
    h = (random.standard_normal((n, d)) + 0.5).astype(np.float32)
    return W, h, random.integers(0, c, n)


def rotation(seed: int, d: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0]


@pytest.mark.parametrize("kind", ["cosine", "projection"])
@pytest.mark.parametrize("shape", [(11, 7), (5, 9), (1, 1)])
def test_directions_are_numpy_s(kind, shape):
    """σ, v and importance by the definition, in float64: for more and for fewer classes than features."""
    W, h, _ = problem(0, c=shape[0], d=shape[1])
    found = privileged_directions(W, h, kind)
    _, sigma, v = np.linalg.svd(W.astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(found.singular_values, sigma, rtol=1e-5)
    np.testing.assert_allclose(np.abs(np.sum(found.directions * v, axis=1)), 1, rtol=1e-5)
    rebuilt = (found.class_directions.T * found.singular_values) @ found.directions
    np.testing.assert_allclose(rebuilt, W, atol=1e-5, err_msg="left and right singular vectors differ in sign")
    lengths = np.linalg.norm(h, axis=1, keepdims=True) if kind == "cosine" else 1
    importance = sigma * np.abs(h.astype(np.float64) @ v.T / lengths).mean(0)
    np.testing.assert_allclose(found.importance, importance, rtol=1e-5)
    assert found.order.tolist() == np.argsort(-importance).tolist()
    assert found.max_over_mean == pytest.approx(importance.max() / importance.mean(), rel=1e-5)
    if len(sigma) > 1:
        moments = importance - importance.mean()
        assert found.kurtosis == pytest.approx((moments**4).mean() / (moments**2).mean() ** 2, rel=1e-4)
    else:
        assert np.isnan(found.kurtosis)


@few
@given(seeds)
def test_importance_does_not_depend_on_the_basis(seed):
    """Rotating representation and head together changes no importance; scaling h changes none of the cosine kind."""
    W, h, _ = problem(seed)
    q = rotation(seed, W.shape[1])
    found = privileged_directions(W, h).importance
    np.testing.assert_allclose(privileged_directions(W @ q, 3 * h @ q).importance, found, rtol=1e-3)


@few
@given(seeds, st.sampled_from([1, 25]))
def test_stream_equals_whole(seed, cut):
    """Shards merged in either order give what all rows give at once."""
    W, h, _ = problem(seed)
    empty = DirectionImportance.empty(W)
    a, b = empty.update(h[:cut]), empty.update(h[cut:])
    whole = privileged_directions(W, h).importance
    for merged in (a.merge(b), b.merge(a)):
        np.testing.assert_allclose(merged.result().importance, whole, rtol=1e-5)


def test_planted_privileged_direction_is_found_and_tied_to_its_feature():
    """A head that reads one outlier coordinate strongly: that direction comes first, far above, and loads on it."""
    W, h, _ = problem(1, n=200, c=60, d=48)
    h[:, 29] += 30
    W[:, 29] *= 4
    found = privileged_directions(W, h)
    features, loadings = largest_coordinates(found.directions[found.order], k=3)
    assert features[0, 0] == 29 and loadings[0, 0] > 0.9
    assert found.max_over_mean > 10


def test_a_direction_loads_on_features_of_either_sign():
    """By magnitude, each with its sign: a direction may read an outlier feature downwards. All where k is above d."""
    features, loadings = largest_coordinates([[0.1, -0.7, 0.5, 0.0], [-0.2, 0.3, 0.4, -0.9]], k=3)
    assert features.tolist() == [[1, 2, 0], [3, 2, 1]]
    assert loadings.tolist() == [[-0.7, 0.5, 0.1], [-0.9, 0.4, 0.3]]
    assert largest_coordinates(np.eye(4), k=5)[0].shape == (4, 4)


def test_rows_of_zeros_count_as_no_alignment():
    """A dead representation has no direction: it neither makes NaN nor counts as aligned."""
    W, h, _ = problem(2)
    padded = np.concatenate([h, np.zeros_like(h)])
    half = privileged_directions(W, padded).importance
    np.testing.assert_allclose(half, privileged_directions(W, h).importance / 2, rtol=1e-5)


def test_bad_input_of_directions():
    """Each mistake is one clear error that names what is wrong."""
    W, h, _ = problem(0)
    bad = h.copy()
    bad[17, 2] = np.nan
    with pytest.raises(InputError, match="h: row 17"):
        privileged_directions(W, bad)
    with pytest.raises(InputError, match="W: row 3"):
        privileged_directions(np.where(np.arange(11)[:, None] == 3, np.inf, W), h)
    with pytest.raises(InputError, match="6 columns where 7"):
        privileged_directions(W, h[:, :6])
    with pytest.raises(InputError, match="'cos', not one of cosine, projection"):
        privileged_directions(W, h, "cos")
    with pytest.raises(InputError, match="different heads"):
        DirectionImportance.empty(W).merge(DirectionImportance.empty(2 * W, "projection"))


def pruned_accuracy(W, h, labels, fraction, subset=None, bias=0.0, kind="cosine") -> float:
    """Prunes and classifies as the definition has it, one fraction at a time, in float64."""
    u, sigma, v = np.linalg.svd(W.astype(np.float64), full_matrices=False)
    lengths = np.linalg.norm(h, axis=1, keepdims=True) if kind == "cosine" else 1
    order = np.argsort(sigma * np.abs(h @ v.T / lengths).mean(0))
    sigma[order[: int(np.floor(fraction * len(sigma) + 0.5))]] = 0
    logits = h @ ((u * sigma) @ v).T + bias
    if subset is not None:
        logits[:, np.setdiff1d(np.arange(len(W)), subset)] = -np.inf
    return (logits.argmax(1)[:, None] == labels.reshape(len(h), -1)).any(1).mean()


FRACTIONS = (0.0, 0.13, 0.5, 2.5 / 24, 0.9, 1.0, 1.0)  # 2.5 of 24 directions are 3, half rounded up


@pytest.mark.parametrize("subset", [None, (1, 3, 4, 150)])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("kind", ["cosine", "projection"])
def test_sweep_is_one_pruned_head_for_each_fraction(subset, with_bias, kind):
    """One computation gives the accuracy of every pruned head, unsorted and repeated fractions included."""
    W, h, labels = problem(3, n=300, c=151, d=24)
    h, labels = h + 2 * W[labels] / 10, labels if subset is None else np.asarray(subset)[labels % 4]
    bias = np.random.default_rng(0).standard_normal(151).astype(np.float32) if with_bias else None
    found = prune_sweep(W, h, labels, FRACTIONS, kind, class_subset=subset, bias=bias)
    expected = [pruned_accuracy(W, h, labels, f, subset, 0 if bias is None else bias, kind) for f in FRACTIONS]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_several_right_classes():
    """A prediction is right when it is any of the label's classes (ObjectNet), -1 filling up."""
    W, h, labels = problem(4, n=100, c=11, d=7)
    several = np.stack([labels, (labels + 1) % 11, np.full(100, -1)], axis=1)
    several[::2, 1] = -1
    expected = [pruned_accuracy(W, h, several, f) for f in FRACTIONS]
    np.testing.assert_allclose(prune_sweep(W, h, several, FRACTIONS), expected, atol=1e-9)
    assert expected[0] > pruned_accuracy(W, h, labels, 0.0), "the case tests nothing"


def test_equal_classes_and_nothing_left():
    """As argmax has it: of two equal classes the first is predicted, and a head with nothing left predicts class 0."""
    W, h, _ = problem(5, n=64, c=11, d=7)
    W[8] = W[2]
    predicted = (h @ W.T).argmax(1)
    labels = np.where(predicted == 2, 8, 2)
    assert (predicted == 2).any()
    assert prune_sweep(W, h, labels, [0.0])[0] == 0
    assert prune_sweep(W, h, labels % 3, [1.0])[0] == (labels % 3 == 0).mean()


def test_planted_direction_survives_pruning():
    """Classes told apart by one direction alone: accuracy stays at 1 until that direction goes."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 200)
    h = random.standard_normal((200, 10)).astype(np.float32) / 100
    h[:, 4] += 2.0 * labels - 1
    W = random.standard_normal((2, 10)).astype(np.float32) / 100
    W[:, 4] = (-1, 1)
    assert prune_sweep(W, h, labels, [0.0, 0.5]).tolist() == [1, 1]


def test_ranking_measured_elsewhere_is_used():
    """A ranking from ImageNet decides what is pruned on a shifted set, not the shifted set's own."""
    W, h, labels = problem(6, n=200)
    ranked = privileged_directions(W, h)
    reverse = ranked._replace(order=ranked.order[::-1])
    assert not np.array_equal(prune_sweep(W, h, labels, [0.5], reverse), prune_sweep(W, h, labels, [0.5], ranked))
    np.testing.assert_array_equal(prune_sweep(W, h, labels, [0.5], ranked), prune_sweep(W, h, labels, [0.5]))


def test_bad_input_of_the_sweep():
    """Each mistake is one clear error that names what is wrong."""
    W, h, labels = problem(0)
    for change, message in (
        ({"labels": labels[:-1]}, "labels are"),
        ({"labels": labels.astype(float)}, "labels are float64"),
        ({"labels": np.where(np.arange(40) == 9, 11, labels)}, r"row 9 has \[11\]"),
        ({"labels": np.where(np.arange(40) == 9, -1, labels)}, r"row 9 has \[-1\]"),
        ({"labels": np.where(np.arange(40) == 9, 1, 0), "class_subset": [0, 5]}, r"row 9 has \[1\]"),
        ({"class_subset": [0, 11]}, "class_subset"),
        ({"class_subset": []}, "class_subset"),
        ({"fractions": [0.5, 1.5]}, "fractions"),
        ({"fractions": []}, "fractions"),
        ({"bias": np.zeros(3)}, "bias"),
        ({"importance": privileged_directions(W[:5], h)}, "another shape"),
    ):
        arguments = {"labels": labels, "fractions": [0.5], **change}
        with pytest.raises(InputError, match=message):
            prune_sweep(W, h, **arguments)
