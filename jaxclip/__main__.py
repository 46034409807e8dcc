"""``python -m jaxclip``, and the command ``jaxclip``."""

import sys

from jaxclip.machine import large_pages


def run() -> int:
    """The command line in a process whose memory is in large pages; the value is the exit code."""
    large_pages()
    from jaxclip.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(run())
