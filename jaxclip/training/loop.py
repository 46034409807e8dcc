"""The loop around the step: batches in, metrics and checkpoints out, and nothing lost when the process is killed."""

import collections
import contextlib
import dataclasses
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array
from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

from jaxclip.checkpoint import storage_errors, without_advice
from jaxclip.compiler import compiler_options
from jaxclip.errors import InputError
from jaxclip.files import new_file
from jaxclip.mesh import AXIS
from jaxclip.progress import progress
from jaxclip.training.state import Step, TrainState, arrays

METRICS, CHECKPOINTS, DIVERGED = "metrics.jsonl", "checkpoints", "diverged"
SCORE = "score"


class DivergedError(InputError):
    """The loss, or the norm of its gradients, is no finite number.

    Attributes:
        step: Which step, counted from 1.
        ids: The pictures of its batch.
    """

    def __init__(self, step: int, ids: tuple[str, ...], metrics: Mapping[str, float], saved: int | None, file: Path):
        kept = "There is no checkpoint yet" if saved is None else f"The last checkpoint is of step {saved}"
        few = ", ".join(ids[:4]) + (", …" if len(ids) > 4 else "") + f" (all {len(ids)} pictures: {file})"
        super().__init__(
            f"step {step}: loss {metrics['loss']}, gradient norm {metrics['gradient_norm']}, on the batch of {few}. "
            f"{kept}: take a lower learning rate or a smaller clip_norm, or look at these pictures"
        )
        self.step, self.ids = step, ids


class Trained(NamedTuple):
    """What a run made.

    Attributes:
        last: The model's arrays after the last step: the moving average where the recipe keeps one.
        best: Those of the saved step with the highest score; None where nothing is scored.
        best_step: Which step that is.
    """

    last: dict[str, Array]
    best: dict[str, Array] | None
    best_step: int | None


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When what happens, in steps.

    Attributes:
        steps: The length of the run.
        save: Checkpoint (and score) after every so many, and after the last.
        log: Write metrics after every so many, and after the last.
    """

    steps: int
    save: int
    log: int

    def due(self, step: int, every: int) -> bool:
        """Whether a step is one of every so many, or the last."""
        return step % every == 0 or step == self.steps


def train_mesh() -> Mesh:
    """All devices of all processes along one axis, over which a batch is shared."""
    return Mesh(np.array(jax.devices()), (AXIS,))


def check_divides(batch_size: int, devices: int) -> None:
    """Raises an InputError where devices cannot share a batch; for those who have work to do before they train."""
    if batch_size % devices:
        raise InputError(f"batch size {batch_size} does not divide by the {devices} devices: change it")


def event_writer() -> Any:
    """TensorBoard's writer of events, or the InputError that it is missing."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise InputError("tensorboardX is missing: pip install 'jaxclip[tensorboard]'") from None
    return SummaryWriter


def fit(
    step: Step,
    data: grain.DatasetIterator,
    out: str | os.PathLike,
    schedule: Schedule,
    *,
    seed: int,
    mesh: Mesh | None = None,
    score: Callable[[Mapping[str, Array]], Mapping[str, float]] | None = None,
    keep: Callable[[int, Mapping[str, Array]], None] | None = None,
    tensorboard: bool = False,
) -> Trained:
    """Trains to the end, from the last checkpoint in ``out`` where there is one.

    A run that was killed and is started again takes the same steps on the same batches: on one kind of device its
    parameters are those of a run that was not, bit for bit. SIGTERM (preemption) saves after the step under way, and
    scores and keeps where that step is due, then exits with code 143.

    Args:
        step: Of :func:`~jaxclip.training.state.make_step`.
        data: An endless iterator of dictionaries: NumPy arrays, and ``ids``, a list of strings. Where several processes
            are one job, each gives its part of every batch.
        out: The run's folder: ``metrics.jsonl`` and ``checkpoints/``, of which the last and the best are kept; and
            ``diverged.json`` after a DivergedError: step, metrics and the batch's ids (of several processes each writes
            its part, to ``diverged-0.json`` and so on).
        schedule: Steps.
        seed: Of the random keys.
        mesh: The devices that share each batch; None is :func:`train_mesh`. Parameters are on every one.
        score: From the model's arrays, metrics of which ``score`` decides what is best (the larger).
        keep: What else to do with a step's number and the model's arrays, before each checkpoint.
        tensorboard: Write events for TensorBoard too (the extra ``tensorboard``).

    Raises:
        DivergedError: A loss or gradient is not finite.
        InputError: The batch does not divide by the devices, or tensorboardX is missing.
        OSError: The disk is full, or another thing that the system refuses.
    """
    out, mesh = Path(out), train_mesh() if mesh is None else mesh
    everywhere, shared = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))
    state = _replicated(step.init(jax.random.key(seed)), everywhere)
    options = compiler_options(ynnpack_products=True)
    update = jax.jit(step.update, donate_argnums=0, out_shardings=(everywhere, everywhere), compiler_options=options)
    with contextlib.ExitStack() as stack:
        stack.enter_context(storage_errors(out))
        stack.enter_context(without_advice())
        manager = stack.enter_context(_manager(out / CHECKPOINTS, scored=score is not None))
        stopped = stack.enter_context(_sigterm())
        if (found := manager.latest_step()) is not None:
            state = _restore(manager, found, state, data)
        done = found or 0
        log = stack.enter_context(_Log(out, done, tensorboard))
        advance = stack.enter_context(progress(out.name, schedule.steps - done, unit="steps"))
        pending: collections.deque[_Pending] = collections.deque()

        def settle(left: int) -> None:
            """Reads the metrics of all but the last steps: reading waits for the device."""
            read = [pending.popleft() for _ in range(len(pending) - left)]
            if not read:
                return
            values = [{name: float(value) for name, value in one.metrics.items()} for one in read]
            seconds = log.lap() / len(read)  # of each: those read at once may have ended long before
            for one, metrics in zip(read, values, strict=True):
                if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["gradient_norm"])):
                    manager.wait_until_finished()
                    file = _write_diverged(out, one.step, metrics, one.ids)
                    raise DivergedError(one.step, one.ids, metrics, manager.latest_step(), file)
                log.add(one.step, metrics, one.pictures, seconds, write=schedule.due(one.step, schedule.log))

        for number in range(done + 1, schedule.steps + 1):
            batch, ids, pictures = _on_devices(next(data), shared)
            state, metrics = update(state, batch)
            if number == done + 1:
                log.lap()  # leaves compilation out of the images per second
            pending.append(_Pending(number, metrics, ids, pictures))
            stop, due = _all_agree(stopped, number), schedule.due(number, schedule.save)
            settle(left=0 if stop or due else 1)
            advance(1, log.note)
            if stop or due:
                scores = dict(score(arrays(state, average=True))) if score is not None and due else {}
                if scores:
                    log.write(number, scores)
                if keep is not None and due:
                    keep(number, arrays(state, average=True))
                _save(manager, number, state, data, scores)
                log.lap()  # and scoring and saving
            if stop:
                manager.wait_until_finished()
                raise SystemExit(128 + signal.SIGTERM)
        manager.wait_until_finished()
        best_step = manager.best_step() if score is not None else None
        best = None
        if best_step is not None:
            best = arrays(_restore(manager, best_step, state, None), average=True)
        return Trained(arrays(state, average=True), best, best_step)


class _Pending(NamedTuple):
    step: int
    metrics: dict[str, Array]
    ids: tuple[str, ...]
    pictures: int


def _replicated(state: TrainState, sharding: NamedSharding) -> TrainState:
    """The state on every device; of several processes each gives its own, and all are the same."""
    if sharding.is_fully_addressable:
        return jax.device_put(state, sharding)

    def put(x: Array) -> Array:
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(x)))
        return jax.make_array_from_process_local_data(sharding, np.asarray(x))

    return jax.tree.map(put, state)


def _on_devices(batch: Mapping[str, Any], sharding: NamedSharding) -> tuple[dict[str, Array], tuple[str, ...], int]:
    """The arrays of a batch, global and sharded, its ids, and its number of pictures over all processes."""
    ids = tuple(map(str, batch["ids"]))
    pictures = len(ids) * jax.process_count()
    check_divides(pictures, sharding.num_devices)
    put = {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(value))
        for name, value in batch.items()
        if name != "ids"
    }
    return put, ids, pictures


# --- checkpoints -----------------------------------------------------------------------------------------------------


def _manager(folder: Path, *, scored: bool) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy.AnyPreservationPolicy(
            [
                policy.LatestN(1),
                policy.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False),
            ]
        ),
        best_fn=_score if scored else None,
        enable_async_checkpointing=True,
        cleanup_tmp_directories=True,
        create=True,
    )
    return ocp.CheckpointManager(folder.absolute(), options=options)


def _score(metrics: Any) -> float:
    return metrics[SCORE]


def _save(
    manager: ocp.CheckpointManager,
    number: int,
    state: TrainState,
    data: grain.DatasetIterator,
    scores: Mapping[str, float],
) -> None:
    """Starts to save: the arrays are copied at once, and written while training goes on."""
    manager.save(
        number,
        args=ocp.args.Composite(state=ocp.args.StandardSave(state), data=grain.checkpoint.CheckpointSave(data)),
        metrics=dict(scores) or None,
        force=True,
    )


def _restore(
    manager: ocp.CheckpointManager, number: int, state: TrainState, data: grain.DatasetIterator | None
) -> TrainState:
    """The state of a saved step; ``data``, where it is given, goes to its position then."""
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    items: dict[str, Any] = {"state": ocp.args.StandardRestore(wanted)}
    if data is not None:
        items["data"] = grain.checkpoint.CheckpointRestore(data)
    try:
        found = manager.restore(number, args=ocp.args.Composite(**items))
    except Exception as error:  # Orbax raises whatever its storage layer does
        raise InputError(
            f"{manager.directory}: step {number} cannot be read ({error}): it is of another model or recipe, or "
            "damaged; name another output folder to start anew"
        ) from error
    return found["state"]


# --- signals ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """Set once the process is asked to end. Jobs of several processes leave the signal to JAX, which tells them all."""
    asked = threading.Event()
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def _all_agree(asked: threading.Event, number: int) -> bool:
    if jax.process_count() == 1:
        return asked.is_set()
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(number)


# --- metrics ---------------------------------------------------------------------------------------------------------


class _Log:
    """``metrics.jsonl``: one object a line; a run that goes on drops the lines of the steps that it takes again.

    Of the processes of a job the first writes it.
    """

    def __init__(self, out: Path, done: int, tensorboard: bool):
        self._path, self._done, self._tensorboard = out / METRICS, done, tensorboard
        self._sums: collections.Counter[str] = collections.Counter()
        self._steps = self._pictures = 0
        self._seconds, self._last = 0.0, time.perf_counter()
        self.note = ""

    def __enter__(self) -> "_Log":
        self._file, self._events = None, None
        if jax.process_index() > 0:
            return self
        if self._tensorboard:
            self._events = event_writer()(str(self._path.parent / "tensorboard"), purge_step=self._done + 1)
        before = self._path.read_text().splitlines() if self._path.exists() else []
        with new_file(self._path) as file:
            file.writelines(f"{line}\n" for line in before if _step_of(line) <= self._done)
        self._file = self._path.open("a")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        if self._events is not None:
            self._events.close()

    def lap(self) -> float:
        """Seconds since this was last asked."""
        last, self._last = self._last, time.perf_counter()
        return self._last - last

    def add(self, step: int, metrics: Mapping[str, float], pictures: int, seconds: float, *, write: bool) -> None:
        """Takes a step's metrics in; ``write``: writes their means over the steps since it last did."""
        self.note = f"loss {metrics['loss']:.3f}, {pictures / seconds:,.0f} images/s"
        self._sums.update(metrics)
        self._steps, self._pictures, self._seconds = self._steps + 1, self._pictures + pictures, self._seconds + seconds
        if write:
            means = {name: total / self._steps for name, total in self._sums.items()}
            self.write(step, {**means, "images_per_second": self._pictures / self._seconds})
            self._sums.clear()
            self._steps, self._pictures, self._seconds = 0, 0, 0.0

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes a line."""
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in metrics.items():
                self._events.add_scalar(name, value, step)


def _write_diverged(out: Path, step: int, metrics: Mapping[str, float], ids: tuple[str, ...]) -> Path:
    path = out / (f"{DIVERGED}.json" if jax.process_count() == 1 else f"{DIVERGED}-{jax.process_index()}.json")
    plain = {name: value if math.isfinite(value) else str(value) for name, value in metrics.items()}  # JSON has no NaN
    with new_file(path, encoding="utf-8") as file:
        json.dump({"step": step, "metrics": plain, "ids": ids}, file)
    return path


def _step_of(line: str) -> float:
    """The step of a line; one that a kill cut short has none, and is dropped."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return math.inf
