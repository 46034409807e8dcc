"""The loop: kills, preemption, divergence, devices, what is kept, and the log."""

import errno
import json
import math
import os
import platform
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import grain
import jax
import numpy as np
import pytest
import training_worker as worker

from jaxclip.training import loop
from jaxclip.training.loop import DivergedError, Schedule, fit

WORKER = Path(__file__).with_name("training_worker.py")


def start(*args: object, **env: str) -> subprocess.Popen:
    command = [sys.executable, str(WORKER), *map(str, args)]
    return subprocess.Popen(command, env=os.environ | {"JAX_PLATFORMS": "cpu"} | env, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen, code: int = 0) -> None:
    _, said = process.communicate(timeout=240)
    assert process.returncode == code, said[-2000:]


def steps_logged(out: Path) -> list[int]:
    path = out / loop.METRICS
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_step(process: subprocess.Popen, out: Path, step: int) -> None:
    while process.poll() is None and (not (found := steps_logged_safely(out)) or found < step):
        time.sleep(0.01)


def steps_logged_safely(out: Path) -> int:
    """The last step of a log that another process is writing."""
    path = out / loop.METRICS
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


@pytest.mark.slow
def test_killed_and_preempted_runs_end_with_the_same_bits(tmp_path: Path) -> None:
    """SIGKILL after random steps, once SIGTERM, then on to the end: parameters, moments and EMA are bit-identical."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(start("run", whole))
    rng = random.Random(os.urandom(8))
    kills = sorted(rng.sample(range(2, 28), 2))
    for number, sign in ((kills[0], signal.SIGKILL), (kills[1], signal.SIGTERM)):
        process = start("run", broken)
        wait_for_step(process, broken, number)
        process.send_signal(sign)
        if sign == signal.SIGTERM:
            finish(process, 128 + signal.SIGTERM)
            saved = max(int(p.name) for p in (broken / loop.CHECKPOINTS).iterdir() if p.name.isdigit())
            assert saved >= number, f"SIGTERM at step {number} left a checkpoint of step {saved}"
        else:
            finish(process, -signal.SIGKILL)
    finish(start("run", broken))
    assert steps_logged(broken) == list(range(1, 31)), "the log skips or repeats steps"
    a, b = (np.load(out / "arrays.npz") for out in (whole, broken))
    for name in a.files:
        assert np.array_equal(a[name], b[name]), f"{name} differs after kills at {kills}"


@pytest.mark.slow
def test_a_killed_run_goes_on_with_any_number_of_workers(tmp_path: Path) -> None:
    """Else a run that moves to a machine of more cores could not go on, or would take other batches."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(start("run", whole, 0))
    for workers, number in ((1, 6), (2, 13)):
        process = start("run", broken, workers)
        wait_for_step(process, broken, number)
        process.kill()
        finish(process, -signal.SIGKILL)
    finish(start("run", broken, 0))
    a, b = (np.load(out / "arrays.npz") for out in (whole, broken))
    for name in a.files:
        assert np.array_equal(a[name], b[name]), f"{name} differs"


@pytest.mark.slow
def test_eight_devices_are_one(tmp_path: Path) -> None:
    """Gradients, batch-norm moments and contrast are of the global batch, not of a device's part."""
    finish(start("devices", tmp_path, XLA_FLAGS="--xla_force_host_platform_device_count=8"))


@pytest.fixture(scope="module")
def step():
    return worker.toy_step(steps=12)


def test_a_run_goes_on_where_it_was(step, tmp_path: Path) -> None:
    """12 steps in one go, or 8, an exception and the rest: same bits. Data, optimiser, EMA and key are all restored."""
    whole = fit(step, worker.batches(4), tmp_path / "a", Schedule(12, save=4, log=1), seed=1)

    def crash(arrays):
        if crash.calls:
            raise KeyboardInterrupt
        crash.calls += 1
        return {"score": 0.0}

    crash.calls = 0
    with pytest.raises(KeyboardInterrupt):
        fit(step, worker.batches(4), tmp_path / "b", Schedule(12, save=4, log=1), seed=1, score=crash)
    assert steps_logged(tmp_path / "b")[-1] == 8
    again = fit(step, worker.batches(4), tmp_path / "b", Schedule(12, save=4, log=1), seed=1)
    lines = steps_logged(tmp_path / "b")
    assert sorted(set(lines)) == list(range(1, 13)) and lines == sorted(lines)
    for name, value in whole.last.items():
        assert np.array_equal(value, again.last[name]), f"{name} differs after the restart"
    # Another seed must give other parameters, or the comparison above is of constants.
    other = fit(step, worker.batches(4), tmp_path / "c", Schedule(12, save=12, log=1), seed=2)
    assert any(not np.array_equal(value, other.last[name]) for name, value in whole.last.items())


def test_best_and_last_are_kept(step, tmp_path: Path) -> None:
    """Scores 1, 5, 2: the second is the best; the first is pruned."""
    scores = iter([1.0, 5.0, 2.0])
    trained = fit(
        step,
        worker.batches(4),
        tmp_path,
        Schedule(6, save=2, log=1),
        seed=1,
        score=lambda arrays: {"score": next(scores)},
    )
    assert {p.name for p in (tmp_path / loop.CHECKPOINTS).iterdir() if p.name.isdigit()} == {"4", "6"}
    assert trained.best_step == 4 and trained.best is not None
    shorter = fit(step, worker.batches(4), tmp_path / "4", Schedule(4, save=4, log=1), seed=1)
    for name, value in shorter.last.items():
        assert np.array_equal(value, trained.best[name]), f"best's {name} is not that of step 4"


class Terminated(grain.DatasetIterator):
    """Batches, before one of which the process is asked to end."""

    def __init__(self, data: grain.DatasetIterator, at: int):
        super().__init__(data)
        self.left = at

    def __next__(self):
        self.left -= 1
        if not self.left:
            signal.raise_signal(signal.SIGTERM)
        return next(self._parent)

    def get_state(self):
        return self._parent.get_state()

    def set_state(self, state):
        self._parent.set_state(state)


@pytest.mark.parametrize(("at", "best"), [(3, 4), (4, 4), (8, 8)])
def test_preempted_nothing_due_is_lost(step, tmp_path: Path, caplog, at: int, best: int) -> None:
    """Else the run would never have that step's score and snapshot: another best, or after the last step none.

    Between two saves no score is due, and nobody need be warned of it.
    """
    ends = {}
    for name in ("whole", "broken"):
        scores, kept = iter([5.0, 1.0] if best == 4 else [1.0, 5.0]), []

        def run(data, name=name, scores=scores, kept=kept):
            return fit(
                step,
                data,
                tmp_path / name,
                Schedule(8, save=4, log=1),
                seed=1,
                score=lambda arrays: {"score": next(scores)},
                keep=lambda number, arrays: kept.append(number),
            )

        if name == "broken":
            with pytest.raises(SystemExit):
                run(Terminated(worker.batches(4), at))
        ends[name] = run(worker.batches(4))
        assert kept == [4, 8], f"{name}: other snapshots"
        assert ends[name].best_step == best, f"{name}: another best"
    assert not [record.getMessage() for record in caplog.records if record.name == "absl"]
    assert steps_logged(tmp_path / "broken") == steps_logged(tmp_path / "whole")
    for part in ("last", "best"):
        for name, value in getattr(ends["whole"], part).items():
            assert np.array_equal(value, getattr(ends["broken"], part)[name]), f"{part}: {name} differs"


def test_the_last_steps_are_logged_and_scoring_takes_no_images_per_second(step, tmp_path: Path) -> None:
    """Short runs would log no loss, long ones not that of their end; and speed would fall with validation data."""
    fit(step, worker.batches(4), tmp_path / "short", Schedule(3, save=3, log=10), seed=1)
    assert steps_logged(tmp_path / "short") == [3]

    def score(arrays):
        time.sleep(2)
        return {"score": 0.0}

    fit(step, worker.batches(4), tmp_path / "scored", Schedule(7, save=2, log=4), seed=1, score=score)
    assert steps_logged(tmp_path / "scored") == [2, 4, 4, 6, 7, 7], "losses are due at 4 and 7"
    lines = [json.loads(line) for line in (tmp_path / "scored" / loop.METRICS).read_text().splitlines()]
    speed = lines[4]["images_per_second"]
    assert speed > 12 / 2, "steps 5 to 7 took less than the two seconds of the scoring between them"


def test_no_step_is_too_fast_to_be_true(step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that had ended when it was read had its time counted to the one before: thousands of times the speed."""
    put = loop._on_devices
    monkeypatch.setattr(loop, "_on_devices", lambda *args: (time.sleep(0.05), put(*args))[1])
    fit(step, worker.batches(4), tmp_path, Schedule(8, save=2, log=1), seed=1)
    lines = [json.loads(line) for line in (tmp_path / loop.METRICS).read_text().splitlines()]
    speeds = [line["images_per_second"] for line in lines]
    assert len(speeds) == 8 and max(speeds) < 20 * min(speeds[1:])


def test_divergence_names_step_and_pictures(tmp_path: Path) -> None:
    """The error has the step and its batch, though it is noticed while the next step is under way; a file has all."""
    step = worker.toy_step(steps=8, accumulate=1, ema_decay=None)

    def poisoned(state, batch):
        state, metrics = step.update(state, batch)
        return state, metrics | {"loss": jax.numpy.where(state.step == 3, jax.numpy.nan, metrics["loss"])}

    data = worker.batches(4)
    expected = [next(data)["ids"] for _ in range(3)][-1]
    with pytest.raises(DivergedError, match="step 3") as caught:
        fit(step._replace(update=poisoned), worker.batches(4), tmp_path, Schedule(8, save=2, log=1), seed=1)
    assert caught.value.step == 3 and caught.value.ids == tuple(expected)
    assert "step 2" in str(caught.value), "the message must name the last good checkpoint"
    file = tmp_path / "diverged.json"
    assert str(file) in str(caught.value), "the message must name the file"
    written = json.loads(file.read_text())
    assert written["step"] == 3 and written["ids"] == list(map(str, expected))
    assert written["metrics"]["loss"] == "nan", "other programs' JSON readers refuse NaN"
    assert {p.name for p in (tmp_path / loop.CHECKPOINTS).iterdir() if p.name.isdigit()} == {"2"}


def test_without_a_checkpoint_a_divergence_says_so() -> None:
    error = DivergedError(1, ("a.png",), {"loss": math.nan, "gradient_norm": math.nan}, None, Path("diverged.json"))
    assert "There is no checkpoint yet" in str(error) and "None" not in str(error)


PAGES = """
import resource
from jaxclip.machine import keep_memory
{}
import jax, jax.numpy as jnp
step = jax.jit(lambda x: jnp.cos(x) @ x[:4096, :8])
x = jnp.ones((8192, 4096))
taken = []
for _ in range(16):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    jax.block_until_ready(step(x))
    taken.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sorted(taken[5:])[5])
"""


@pytest.mark.cpu
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's setting")
def test_a_step_takes_no_fresh_memory() -> None:
    """128 MB, which are more than glibc keeps for a thread other than the first, are 32,768 pages, or 64 large ones."""
    kept, fresh = (
        int(subprocess.run([sys.executable, "-c", PAGES.format(call)], check=True, stdout=subprocess.PIPE).stdout)
        for call in ("keep_memory()", "")
    )
    assert kept < 8 < 64 <= fresh


@pytest.mark.parametrize("call", ["save", "close"])
def test_a_full_disk_is_an_error_of_the_system(call: str, step, tmp_path: Path, monkeypatch) -> None:
    """TensorStore's ValueError would be a traceback; the command line has one line for this one."""

    def full(*_: object, **__: object) -> None:
        raise ValueError("INTERNAL: write failed [os_error_code='28'] [source locations='…']")

    monkeypatch.setattr(loop.ocp.CheckpointManager, call, full)
    with pytest.raises(OSError, match=str(tmp_path)) as caught:
        fit(step, worker.batches(4), tmp_path, Schedule(2, save=2, log=1), seed=1)
    assert caught.value.errno == errno.ENOSPC
