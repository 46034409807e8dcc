"""How a process that computes on a CPU holds its memory. Imports nothing heavy: it comes before what starts threads."""

import contextlib
import ctypes


def keep_memory() -> None:
    """Has this process keep memory that is freed, where glibc gives it: call it before JAX and all else is imported.

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
