"""What a process has of its machine: cores, memory that it keeps. Imports nothing heavy: it precedes all threads."""

import contextlib
import ctypes
import os


def cores() -> int:
    """The processor cores that this process may run on (of a shared node, those that Slurm or taskset gave it)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_memory() -> None:
    """Makes glibc keep the memory that this process frees: call it before JAX and all else is imported.

    XLA's CPU backend frees its buffers after each call and asks for the same again, and fresh pages from the system
    take a tenth of a training step (a quarter on a virtual machine whose host takes them back meanwhile) and some of a
    ResNet's encoding. One arena for all threads, as others give large buffers back whatever they are told; that is
    settled when the first thread asks for memory. Where JAX computes elsewhere, it is the host's own buffers that are
    kept.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for option, value in ((-4, 0), (-1, -1), (-8, 1)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX
            libc.mallopt(option, value)
