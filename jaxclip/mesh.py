"""Where arrays go: a mesh of this process's devices; and the steps that the processes of one job take together.

One CPU, one GPU, eight TPU cores and many hosts run the same code. Each process computes on its own devices alone, so
that no picture waits for another host; what processes share is the work, which each takes its part of, and the disk.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from jaxclip import checkpoint
from jaxclip.config import ModelConfig
from jaxclip.errors import InputError
from jaxclip.models import clip

AXIS = "data"
_FOREVER = 30 * 24 * 3600  # seconds: one process may have much more left to do than another


def local_mesh() -> Mesh:
    """All devices of this process along one axis, ``data``."""
    return Mesh(np.array(jax.local_devices()), (AXIS,))


def parameter_sharding(
    mesh: Mesh, config: ModelConfig | None = None, *, min_size: int = 2**16
) -> NamedSharding | dict[str, NamedSharding]:
    """Where :func:`jaxclip.load_model` is to put parameters: a copy on every device, or parts of each.

    Args:
        mesh: The devices.
        config: With it, parameters are sharded as in FSDP (ZeRO stage 3, Rajbhandari et al. 2020): each along its
            longest axis that the number of devices divides, for models that do not fit on one device.
        min_size: Parameters with fewer elements, or with no such axis, are on every device all the same.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    if config is None:
        return everywhere

    def split(shape: tuple[int, ...]) -> NamedSharding:
        axes = [axis for axis, length in enumerate(shape) if length % mesh.size == 0]
        if not axes or np.prod(shape) < min_size:
            return everywhere
        longest = max(axes, key=lambda axis: shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, AXIS))

    return {name: split(leaf.shape) for name, leaf in checkpoint.named(clip.abstract(config)).items()}


def batch_sharding(params: Any) -> Sharding:
    """Where pictures go to meet ``params``: over the devices of their mesh, or to their one device."""
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec(AXIS))
    return sharding or SingleDeviceSharding(jax.local_devices()[0])


def whole_batch(batch_size: int, sharding: Sharding) -> int:
    """The batch size, rounded up to a multiple of the devices that share a batch."""
    return -(-batch_size // sharding.num_devices) * sharding.num_devices


@contextlib.contextmanager
def together(step: str) -> Iterator[None]:
    """A block that every process of the job runs. It ends when all have ended theirs, and fails in all if in one.

    Args:
        step: What is done, for the message.

    Raises:
        InputError: The block failed in another process, whose own message says why.
    """
    error = None
    try:
        yield
    except Exception as caught:
        error = caught
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils
        from orbax.checkpoint import multihost

        # The barrier waits as long as it must; the collective, which times out, then finds all of them there.
        multihost.sync_global_processes(
            multihost.unique_barrier_key(step), timeout=_FOREVER, processes=set(range(jax.process_count()))
        )
        failed = np.flatnonzero(multihost_utils.process_allgather(np.int32(error is not None)))
        if error is None and failed.size:
            raise InputError(f"process {failed[0]} of {jax.process_count()} failed to {step}: see its message")
    if error is not None:
        raise error


def start_processes() -> None:
    """Joins this process to its job: the addresses come from Slurm, the TPU VM, Open MPI or Kubernetes.

    Raises:
        InputError: None of them started this process.
    """
    try:
        jax.distributed.initialize()
    except ValueError as error:
        raise InputError(
            f"this process is not part of a job that JAX knows ({error}): start it with srun or on every TPU VM, or "
            "leave --distributed out"
        ) from error
