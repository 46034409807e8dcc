"""What a process has of its machine: cores, memory that it keeps."""

import ctypes
import os


def cores() -> int:
    """The processor cores that this process may run on (of a shared node, those that Slurm or taskset gave it)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_memory() -> None:
    """Has glibc keep the memory that this process frees: call it before JAX's first computation.

    XLA's CPU backend frees its buffers after each call and asks for the same again, and fresh pages from the system
    take a tenth to a fifth of a training step or of a ResNet's encoding. glibc keeps large buffers for the main thread
    alone (other threads' arenas hold 64 MB at most), so that JAX is told to compute on a CPU in the thread that asks
    for it, not in one of its own. Nothing is done under another C library. Where JAX computes elsewhere, it is the
    host's own buffers that are kept.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    for option, value in ((-4, 0), (-1, -1)):  # M_MMAP_MAX, M_TRIM_THRESHOLD
        mallopt(option, value)
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)
