"""What a process has of its machine: cores, pages of memory. Imports nothing heavy: it precedes all else."""

import os
import sys
from pathlib import Path

TUNABLES, HUGE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def cores() -> int:
    """The processor cores that this process may run on (of a shared node, those that Slurm or taskset gave it)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def large_pages() -> None:
    """Starts this process's command again with memory in pages of 2 MB, where Linux leaves that to each process.

    XLA's CPU backend frees its buffers after each call and asks for the same again, and fresh pages of 4 KB from the
    system take a tenth to a fifth of a training step, and some of a ResNet's encoding. glibc reads the setting when a
    process starts; child processes have it, too. Nothing is done where it is set already, either way, or where another
    C library or kernel does not know it. Call it first: what was done before is done twice.
    """
    tunables = os.environ.get(TUNABLES, "")
    if HUGE in tunables or not sys.executable or not _asked_for():
        return
    os.environ[TUNABLES] = f"{tunables}:{HUGE}=1".lstrip(":")
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _asked_for() -> bool:
    """Whether glibc (2.35 or newer) asks for large pages when told to, and Linux gives them when asked."""
    try:
        version = tuple(map(int, (os.confstr("CS_GNU_LIBC_VERSION") or "").removeprefix("glibc ").split(".")))
        return version >= (2, 35) and "[madvise]" in PAGES.read_text()
    except (ValueError, AttributeError, OSError):
        return False
