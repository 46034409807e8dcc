"""The analyses beside their peers, on random input of the paper's size."""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

from benchmarks.contest import Turn, alone, peak_memory, ratio, take_turns
from jaxclip.machine import keep_memory

TITLE = "Analyses, float32, random input"
TURNS = 5


class Peer(NamedTuple):
    """Whom jaxclip is measured beside.

    Attributes:
        name: What it does.
        run: Does it, or a part of it.
        whole: How many such parts the whole is.
        faster: Whether jaxclip's aim is to be that much faster; else to take that much longer at the most.
        aim: The aim, in words.
    """

    name: str
    run: Callable[[], Any]
    whole: float
    faster: bool
    aim: str


class Case(NamedTuple):
    """What is measured: jaxclip's way, and its peers."""

    what: str
    run: Callable[[], Any]
    peers: tuple[Peer, ...]


def average_precision(random: np.random.Generator) -> list[Case]:
    """Every pair of direction and concept, beside scikit-learn's call for a pair and numpy's for a direction."""
    from sklearn.metrics import average_precision_score

    from jaxclip import analysis

    n, d, c, pairs, directions = 60_000, 512, 1200, 3, 4
    scores = random.standard_normal((n, d), np.float32)
    labels = broden_like(random, n, c)
    dense = labels[:, :pairs].toarray()
    what = f"average_precision, {n:,} × {d} × {c:,}, {100 * labels.nnz / n / c:.1f} % positives"
    return [
        Case(
            what,
            lambda: analysis.average_precision(scores, labels),
            (
                Peer(
                    f"scikit-learn for each pair (from {pairs})",
                    lambda: [average_precision_score(dense[:, k], scores[:, 0]) for k in range(pairs)],
                    d * c / pairs,
                    True,
                    "≥ 500",
                ),
                Peer(
                    f"numpy, rank and gather (from {directions} directions)",
                    lambda: [rank_and_gather(scores[:, i], labels) for i in range(directions)],
                    d / directions,
                    True,
                    "by far",
                ),
            ),
        )
    ]


def prune_sweep(random: np.random.Generator) -> list[Case]:
    """All fractions, beside one classification."""
    import jax
    import jax.numpy as jnp

    from jaxclip import analysis
    from jaxclip.analysis.rows import BLOCK, EXACT

    n, d, c, levels = 16_384, 768, 1000, 101
    W, h = random.standard_normal((c, d), np.float32), random.standard_normal((n, d), np.float32)
    labels = random.integers(0, c, n)
    ranked = analysis.privileged_directions(W, h)

    @jax.jit
    def right(h: jax.Array, W: jax.Array, labels: jax.Array) -> jax.Array:
        return (jnp.matmul(h, W.T, precision=EXACT).argmax(1) == labels).sum()

    def classify() -> list[jax.Array]:
        return jax.block_until_ready([right(h[i : i + BLOCK], W, labels[i : i + BLOCK]) for i in range(0, n, BLOCK)])

    return [
        Case(
            f"prune_sweep, {levels} fractions, {n:,} × {d}, {c:,} classes",
            lambda: analysis.prune_sweep(W, h, labels, np.linspace(0, 1, levels), ranked),
            (Peer("one full classification", classify, 1, False, "< 3"),),
        )
    ]


def moments(random: np.random.Generator) -> list[Case]:
    """Kurtosis beside the bandwidth of memory, CKA beside its matrix products."""
    import jax
    import jax.numpy as jnp

    from jaxclip import analysis
    from jaxclip.analysis.rows import BLOCK, EXACT

    n, d, pairs = 50_000, 768, 16_384
    on_device = jnp.array(random.standard_normal((n, d), np.float32))
    h = np.asarray(on_device)  # at an address divisible by 64, as what an encoder gives: JAX copies others first
    copy = jax.jit(lambda h: h + 1)
    a, b = h[:pairs], h[pairs : 2 * pairs]
    products = jax.jit(lambda a, b: [jnp.matmul(x.T, y, precision=EXACT) for x, y in ((a, a), (a, b), (b, b))])
    peer = Peer("reading and writing h once", lambda: jax.block_until_ready(copy(on_device)), 1, False, "≤ 2")
    return [
        Case(
            f"activation_kurtosis, {n:,} × {d}", lambda: jax.block_until_ready(analysis.activation_kurtosis(h)), (peer,)
        ),
        Case(
            f"ActivationStats (kurtosis and outliers), {n:,} × {d}",
            lambda: analysis.ActivationStats.empty(d).update(h).result(),
            (peer._replace(aim="–"),),
        ),
        Case(
            f"LinearCKA moments, {pairs:,} × {d} twice",
            lambda: analysis.LinearCKA.empty(d, d).update(a, b),
            (
                Peer(
                    "the same matrix products",
                    lambda: jax.block_until_ready(
                        [products(a[i : i + BLOCK], b[i : i + BLOCK]) for i in range(0, pairs, BLOCK)]
                    ),
                    1,
                    False,
                    "≤ 2",
                ),
            ),
        ),
    ]


def everything(random: np.random.Generator) -> list[Case]:
    """Every analysis of one model, compilation included where it is not cached: no peer."""
    import jax

    from jaxclip import analysis

    n, d, c = 50_000, 768, 1000
    W, h = random.standard_normal((c, d), np.float32), random.standard_normal((n, d), np.float32)
    shifts = [h[:m] for m in (10_000, 30_000, n, 18_574, 7500)]
    broden = random.standard_normal((60_000, d), np.float32)
    concepts = broden_like(random, len(broden), 1200)

    def run() -> None:
        analysis.ActivationStats.empty(d).update(h).result()
        ranked = analysis.privileged_directions(W, h)
        for data in (h, *shifts):
            analysis.prune_sweep(W, data, np.zeros(len(data), int), np.linspace(0, 1, 101), ranked)
        analysis.LinearCKA.empty(d, d).update(h, h).result()
        analysis.concept_counts(broden, concepts, ranked.directions, key=jax.random.key(0))

    return [Case(f"all of one model: {n:,} × {d}, five shifts, {len(broden):,} pictures of 1,200 concepts", run, ())]


CASES: dict[str, Callable[[np.random.Generator], list[Case]]] = {
    "average_precision": average_precision,
    "prune_sweep": prune_sweep,
    "moments": moments,
    "everything": everything,
}


def measure(label: str) -> dict[str, Any]:
    """Seconds of jaxclip and of its peers, in turn, in a process of their own."""
    return alone(_measure, label)


def _measure(label: str) -> dict[str, Any]:
    keep_memory()  # as `jaxclip analyze` does
    rows: list[dict[str, Any]] = []
    for case in CASES[label](np.random.default_rng(0)):
        runs = {"jaxclip": _timed(case.run, 1)} | {peer.name: _timed(peer.run, peer.whole) for peer in case.peers}
        if case.peers:
            for run in runs.values():
                run()
        times = take_turns(runs, seconds=0, least=TURNS if case.peers else 1)
        peers = [{"name": p.name, "faster": p.faster, "aim": p.aim, "seconds": times[p.name]} for p in case.peers]
        rows.append({"what": case.what, "seconds": times["jaxclip"], "peers": peers})
    return {"rows": rows, "peak memory bytes": peak_memory()}


def _timed(run: Callable[[], Any], whole: float) -> Callable[[], Turn]:
    def timed() -> Turn:
        start = time.perf_counter()
        run()
        return Turn(whole * (time.perf_counter() - start), None)

    return timed


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The Markdown table of all results."""
    lines = ["| what | jaxclip, s | beside | its s | ratio | aim |", "| --- | --- | --- | --- | --- | --- |"]
    for result in results.values():
        for row in result["rows"]:
            mine = f"| {row['what']} | {median(row['seconds']):.3g} "
            if not row["peers"]:
                lines.append(mine + "| – | – | – | < 120 s |")
            for peer in row["peers"]:
                times = ratio(row["seconds"], peer["seconds"])
                compared = f"{times:,.1f} times as fast" if peer["faster"] else f"{1 / times:.2f} times its time"
                lines.append(mine + f"| {peer['name']} | {median(peer['seconds']):.3g} | {compared} | {peer['aim']} |")
    if "average_precision" in results:
        peak = results["average_precision"]["peak memory bytes"] / 1e9
        lines += ["", f"Peak memory of average precision's process, input and peers included: {peak:.2f} GB (aim < 4)."]
    return "\n".join(lines)


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
