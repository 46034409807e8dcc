"""Contestants that take turns on one machine, each in a process of its own, so that no two thread pools fight."""

import contextlib
import multiprocessing
import os
import platform
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Functions = dict[str, Callable[[], Any]]
PAUSE = 0.3  # seconds for the last contestant's threads to fall asleep


class Turn(NamedTuple):
    """What one call took, in seconds, and gave."""

    seconds: float
    value: Any


@contextlib.contextmanager
def process(prepare: Callable[..., Functions], *args: Any) -> Iterator[Callable[[str], Turn]]:
    """Starts a process, in which ``prepare(*args)`` makes named functions.

    Yields ``call(name)``, which has the process call one. ``call("peak memory")`` gives the most bytes that the process
    has held since all was prepared. The process waits, idle, between calls.
    """
    here, there = multiprocessing.get_context("spawn").Pipe()
    child = multiprocessing.get_context("spawn").Process(target=_serve, args=(there, prepare, args))
    child.start()
    there.close()

    def call(name: str) -> Turn:
        here.send(name)
        answer = here.recv()
        if isinstance(answer, str):
            raise RuntimeError(f"{prepare.__name__}, {name}:\n{answer}")
        return Turn(*answer)

    try:
        yield call
    finally:
        here.close()
        child.join()


def _serve(connection: Any, prepare: Callable[..., Functions], args: tuple[Any, ...]) -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # what is measured on a GPU says so itself
    functions = None
    while True:
        try:
            name = connection.recv()
        except EOFError:
            return
        try:
            if functions is None:
                functions = {**prepare(*args), "peak memory": peak_memory}
                forget_peak_memory()
            start = time.perf_counter()
            value = functions[name]()
            connection.send((time.perf_counter() - start, value))
        except Exception:
            connection.send(traceback.format_exc())


def alone(function: Callable[..., Any], *args: Any) -> Any:
    """What a function gives in a process of its own, whose memory is then free."""
    with process(_only, function, args) as call:
        return call("run").value


def _only(function: Callable[..., Any], args: tuple[Any, ...]) -> Functions:
    return {"run": lambda: function(*args)}


def again(call: Callable[[str], Turn], name: str) -> Turn:
    """The second of two calls in a row: what a contestant freed before it waited, the machine's host may have taken."""
    call(name)
    return call(name)


def take_turns(
    runs: Mapping[str, Callable[[], Turn]], *, seconds: float, least: int = 2, most: int = 7
) -> dict[str, list[float]]:
    """The times of contestants that run one after the other, again and again: a busy machine slows all.

    Args:
        runs: The contestants, all warm.
        seconds: About how long the slowest may run in all; between ``least`` and ``most`` turns are taken.
        least: Turns.
        most: Turns.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    turns = least
    while len(next(iter(times.values()))) < turns:
        for name, run in runs.items():
            time.sleep(PAUSE)
            times[name].append(run().seconds)
        slowest = max(statistics.median(taken) for taken in times.values())
        turns = min(max(least, round(seconds / slowest)), most)
    return times


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How many times faster ours are: the median of the turns' own ratios."""
    return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))


def speeds(result: Mapping[str, Any]) -> dict[str, float]:
    """What each contestant does in a second, from a result's "batch" and the "seconds" of its turns."""
    return {name: result["batch"] / statistics.median(taken) for name, taken in result["seconds"].items()}


def peak_memory() -> int:
    """The most bytes of memory that this process has held (Linux)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def forget_peak_memory() -> None:
    """Starts :func:`peak_memory` anew."""
    Path("/proc/self/clear_refs").write_text("5")


def dtype_of(label: str) -> str:
    """The type that a case computes in, as its label says."""
    return "bfloat16" if "bfloat16" in label else "float32"


def can_run(label: str) -> bool:
    """Whether the case is worth while here: on an NVIDIA GPU if its label ends so; on a CPU without bfloat16
    instructions PyTorch takes minutes for a batch of that type.
    """
    if label.endswith("GPU"):
        return Path("/dev/nvidia0").exists()
    return dtype_of(label) == "float32" or _vectors(_processor()).endswith("bf16")


def span(values: Sequence[float], form: str) -> str:
    """The least and the most of some values, or the one that both are."""
    return " to ".join(dict.fromkeys(format(value, form) for value in (min(values), max(values))))


def machine() -> str:
    """The processor, its cores that this process may use, and how busy it is."""
    facts = _processor()
    name, cores = facts.get("model name", platform.machine()), len(os.sched_getaffinity(0))
    return f"{name} ({_vectors(facts)}), {cores} cores, load {os.getloadavg()[0]:.1f}"


def _processor() -> dict[str, str]:
    lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    return {key.strip(): value.strip() for key, _, value in lines}


def _vectors(facts: Mapping[str, str]) -> str:
    """The best vector instructions."""
    best = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")
    return next((kind for kind in best if kind in facts.get("flags", "")), "no AVX")
