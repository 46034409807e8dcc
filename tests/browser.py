"""A page in headless Chromium."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

needs_browser = pytest.mark.skipif(
    shutil.which("chromium") is None, reason="chromium is not installed: apt-get install chromium"
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --allow-file-access-from-files --enable-logging=stderr --dump-dom"
)


def title_of(page: Path, width: int) -> Any:
    """What the page's script left as JSON in its title; nothing may be said on the console."""
    out = subprocess.run(
        [
            "chromium",
            *FLAGS.split(),
            f"--window-size={width},900",
            f"--user-data-dir={page.parent / 'profile'}",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    assert "CONSOLE" not in out.stderr, [line for line in out.stderr.splitlines() if "CONSOLE" in line]
    (title,) = re.findall(r"<title>(.*?)</title>", out.stdout, flags=re.DOTALL)
    return json.loads(html.unescape(title))
