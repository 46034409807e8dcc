"""Speed of the analyses beside their peers, on synthetic input of the paper's size; prints a Markdown table.

    python -m benchmarks.analysis [--repeats 3]

Every row's two contestants run in turn, ``repeats`` times, and the fastest time of each counts: a busy machine slows
both. The first call, which compiles, is not timed. Peak memory is that of the whole process, input and peers included.
"""

import os
import resource
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
import tyro
from jax import lax
from sklearn.metrics import average_precision_score

from jaxclip.analysis import (
    ActivationStats,
    LinearCKA,
    activation_kurtosis,
    average_precision,
    concept_counts,
    privileged_directions,
    prune_sweep,
)
from jaxclip.analysis.rows import BLOCK, EXACT

Row = tuple[str, float, str, float, float, str]


def fastest(repeats: int, *functions: Callable[[], Any]) -> list[float]:
    """The fastest time of each, in seconds, taken in turn after one call that is not counted."""
    for function in functions:
        jax.block_until_ready(function())
    times = [[] for _ in functions]  # type: ignore[var-annotated]
    for _ in range(repeats):
        for mine, function in zip(times, functions, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(function())
            mine.append(time.perf_counter() - start)
    return [min(mine) for mine in times]


def broden_like(random: np.random.Generator, images: int, concepts: int) -> scipy.sparse.csc_array:
    """Labels as sparse as Broden's: 1 % positives on average, a few concepts common and most rare."""
    frequency = np.exp(random.normal(0, 1.3, concepts))
    frequency = np.minimum(frequency * 0.01 / frequency.mean(), 0.5)
    columns = [np.flatnonzero(random.random(images, np.float32) < f) for f in frequency]
    indptr = np.cumsum([0, *map(len, columns)])
    return scipy.sparse.csc_array((np.ones(indptr[-1], bool), np.concatenate(columns), indptr), (images, concepts))


def rank_and_gather(scores: np.ndarray, labels: scipy.sparse.csc_array) -> float:
    """The obvious numpy way: sort a direction once, gather and sort the ranks of each concept's positives."""
    rank = np.empty(len(scores), np.int64)
    rank[np.argsort(-scores)] = np.arange(1, len(scores) + 1)
    total = 0.0
    for c in range(labels.shape[1]):
        mine = np.sort(rank[labels.indices[labels.indptr[c] : labels.indptr[c + 1]]])
        total += float(np.mean(np.arange(1, len(mine) + 1) / mine))
    return total


def bench_average_precision(random: np.random.Generator, repeats: int) -> list[Row]:
    n, d, c = 60_000, 512, 1200
    scores = random.standard_normal((n, d), np.float32)
    labels = broden_like(random, n, c)
    dense = labels[:, :3].toarray()

    def sklearn() -> None:
        for k in range(3):
            average_precision_score(dense[:, k], scores[:, 0])

    # Two directions of numpy and three pairs of scikit-learn stand for all, which would take hours.
    ours, numpy, peer = fastest(
        repeats,
        lambda: average_precision(scores, labels),
        lambda: [rank_and_gather(scores[:, i], labels) for i in range(2)],
        sklearn,
    )
    what = f"average_precision, {n:,} × {d} × {c:,}, {100 * labels.nnz / n / c:.1f} % positives"
    by_sklearn, by_numpy = peer / 3 * d * c, numpy / 2 * d
    return [
        (what, ours, "scikit-learn per pair (from 3 pairs)", by_sklearn, by_sklearn / ours, "≥ 500 times faster"),
        (what, ours, "numpy rank-and-gather (from 2 directions)", by_numpy, by_numpy / ours, "faster by far"),
    ]


def bench_prune(random: np.random.Generator, repeats: int) -> list[Row]:
    n, d, c = 16_384, 768, 1000
    W = random.standard_normal((c, d), np.float32)
    h = random.standard_normal((n, d), np.float32)
    labels = random.integers(0, c, n)
    ranked = privileged_directions(W, h)
    fractions = np.linspace(0, 1, 101)

    @jax.jit
    def correct(h: jax.Array, W: jax.Array, labels: jax.Array) -> jax.Array:
        return (jnp.matmul(h, W.T, precision=EXACT).argmax(1) == labels).sum()

    def classify() -> list[jax.Array]:
        return [correct(h[i : i + BLOCK], W, labels[i : i + BLOCK]) for i in range(0, n, BLOCK)]

    ours, once = fastest(repeats, lambda: prune_sweep(W, h, labels, fractions, ranked), classify)
    what = f"prune_sweep, 101 fractions, {n:,} × {d}, {c:,} classes"
    return [(what, ours, "one full classification", once, ours / once, "< 3 times its time")]


def bench_moments(random: np.random.Generator, repeats: int) -> list[Row]:
    n, d = 50_000, 768
    h = random.standard_normal((n, d), np.float32)
    on_device = jnp.asarray(h)
    copy = jax.jit(lambda h: h + 1)
    read = jax.jit(lambda h: lax.reduce_max(h, axes=(0,)))
    kurtosis, copied, once = fastest(
        repeats, lambda: activation_kurtosis(h), lambda: copy(on_device), lambda: read(on_device)
    )
    stats = fastest(repeats, lambda: ActivationStats.empty(d).update(h).result())[0]
    size = f"{n:,} × {d}"
    rows: list[Row] = [
        (f"activation_kurtosis, {size}", kurtosis, "read and write h once", copied, kurtosis / copied, "≤ 2 times"),
        (f"activation_kurtosis, {size}", kurtosis, "read h once", once, kurtosis / once, "≤ 2 times"),
        (f"ActivationStats (kurtosis and outliers), {size}", stats, "read h once", once, stats / once, "-"),
    ]
    n = 16_384
    a, b = h[:n], h[n : 2 * n]
    product = jax.jit(lambda a, b: (jnp.matmul(a.T, a, precision=EXACT), jnp.matmul(a.T, b, precision=EXACT), b.T @ b))

    def gemm() -> list[Any]:
        return [product(a[i : i + BLOCK], b[i : i + BLOCK]) for i in range(0, n, BLOCK)]

    ours, limit = fastest(repeats, lambda: LinearCKA.empty(d, d).update(a, b), gemm)
    rows.append(
        (f"LinearCKA moments, {n:,} × {d} twice", ours, "the same matrix products", limit, ours / limit, "≤ 2 times")
    )
    return rows


def bench_all(random: np.random.Generator) -> list[Row]:
    """Every analysis of one model, once and with compilation: its own limit, no peer."""
    n, d, c = 50_000, 768, 1000
    W, h = random.standard_normal((c, d), np.float32), random.standard_normal((n, d), np.float32)
    shifts = [h[:m] for m in (10_000, 30_000, n, 18_574, 7500)]
    broden = random.standard_normal((60_000, d), np.float32)
    concepts = broden_like(random, len(broden), 1200)
    start, start_cpu = time.perf_counter(), time.process_time()
    ActivationStats.empty(d).update(h).result()
    ranked = privileged_directions(W, h)
    for data in (h, *shifts):
        prune_sweep(W, data, np.zeros(len(data), int), np.linspace(0, 1, 101), ranked)
    LinearCKA.empty(d, d).update(h, h).result()
    before = time.perf_counter() - start
    concept_counts(broden, concepts, ranked.directions, key=jax.random.key(0))
    spent, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    counts = f"of which concept_counts with both baselines {spent - before:.0f} s"
    what = f"all analyses of one model ({cpu:.0f} s of processor time), {counts}"
    return [(what, spent, "a limit", 120.0, 120 / spent, "under 2 minutes")]


def main(repeats: int = 3) -> None:
    """Run all, and print the table.

    Args:
        repeats: How often each contestant runs.
    """
    random = np.random.default_rng(0)
    device = jax.devices()[0]
    load = os.getloadavg()[0]
    print(f"{device.device_kind} ({device.platform}), {os.cpu_count()} cores, load {load:.1f}; random input\n")
    print("| what | jaxclip (s) | beside | its time (s) | ratio | target |")
    print("| --- | --- | --- | --- | --- | --- |")
    for bench in (bench_average_precision, bench_prune, bench_moments, bench_all):
        rows = bench(random) if bench is bench_all else bench(random, repeats)  # type: ignore[operator, arg-type, call-arg]
        for what, ours, peer, theirs, ratio, target in rows:
            print(f"| {what} | {ours:.3g} | {peer} | {theirs:.3g} | {ratio:.2f} | {target} |", flush=True)
        if bench is bench_average_precision:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(f"| peak memory of the process so far | {peak:.2f} GB | - | - | - | < 4 GB |", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
