"""The input pipeline: every picture once, in order, as it is, whoever decodes it."""

import dataclasses
import gc
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from grain.multiprocessing import SharedMemoryArray
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxclip.config import Preprocess
from jaxclip.datasets import Example, open_source
from jaxclip.errors import InputError
from jaxclip.loader import batches
from jaxclip.preprocess import preprocess

PIXELS = Preprocess(32)


@dataclasses.dataclass
class Numbered:
    """Made-up pictures: number i is all of grey level i."""

    n: int
    bad: tuple[int, ...] = ()
    deadly: tuple[int, ...] = ()
    name: str = "numbered"
    classes: tuple[str, ...] = ("a", "b", "c")

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Example:
        if i in self.deadly:
            os._exit(3)
        file = io.BytesIO()
        Image.new("L", (4, 4), i).save(file, "PNG")
        data = file.getvalue()
        return Example(f"picture-{i}.png", data[:40] if i in self.bad else data, i % 3)

    def fingerprint(self) -> str:
        return "numbered"


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_source_in_order(folder: Path, workers: int) -> None:
    """Each row is its own picture, preprocessed; in processes a wrong interleaving of workers would mix the order."""
    paths = sorted(folder.glob("*.JPEG"))
    found = list(batches(open_source(str(folder)), PIXELS, 8, workers=workers))
    assert [b.images.shape for b in found] == [(8, 32, 32, 3)] * 3, "the last batch must be padded to full size"
    assert [int(b.mask.sum()) for b in found] == [8, 8, 5]
    rows = [(b.images[i], b.labels[i], b.indices[i]) for b in found for i in np.flatnonzero(b.mask)]
    assert [Path(name).name for b in found for name in b.ids] == [p.name for p in paths]
    for i, ((image, label, index), path) in enumerate(zip(rows, paths, strict=True)):
        assert (label, index) == (48 * i, i)
        np.testing.assert_array_equal(image, preprocess(Image.open(path), PIXELS), err_msg=path.name)
    shared = [x for x in gc.get_objects() if isinstance(x, SharedMemoryArray)]
    assert not shared, "memory that Grain's workers shared is held until exit, and then complained about"


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 20), size=st.integers(1, 9), start=st.integers(0, 20), bad=st.sets(st.integers(0, 19)))
def test_every_picture_is_seen_once(n: int, size: int, start: int, bad: set[int]) -> None:
    """From any start and with any pictures broken, the good ones come once and in order, and the bad are all named."""
    start = min(start, n)
    found = list(
        batches(Numbered(n, tuple(bad)), Preprocess(2), size, workers=0, indices=range(start, n), skip_bad=True)
    )
    assert all(len(b.images) == len(b.labels) == len(b.mask) == size for b in found)
    seen = [int(i) for b in found for i in b.indices[b.mask]]
    assert seen == [i for i in range(start, n) if i not in bad]
    assert [b.images[row].max() for b in found for row in np.flatnonzero(b.mask)] == seen, "image of another picture"
    assert [b.labels[row] for b in found for row in np.flatnonzero(b.mask)] == [i % 3 for i in seen]
    named = [x for b in found for x in b.bad]
    assert [(x.index, x.id) for x in named] == [(i, f"picture-{i}.png") for i in sorted(bad) if start <= i < n]
    assert all(x.reason for x in named)


def test_indices_choose_order_and_leave_rows_empty() -> None:
    """A store's shards start with a batch of their own, so that the last batch of the shard before is padded."""
    found = list(batches(Numbered(9), Preprocess(2), 3, workers=0, indices=np.array([4, 3, -1, 8, -1, -1, 0])))
    assert [b.indices.tolist() for b in found] == [[4, 3, -1], [8, -1, -1], [0, -1, -1]]
    assert [b.mask.tolist() for b in found] == [[True, True, False], [True, False, False], [True, False, False]]
    assert [b.ids for b in found] == [("picture-4.png", "picture-3.png"), ("picture-8.png",), ("picture-0.png",)]
    assert [b.images.max(axis=(1, 2, 3)).tolist() for b in found] == [[4, 3, 0], [8, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_picture_ends_the_run_and_is_named(workers: int) -> None:
    with pytest.raises(InputError, match=r"picture-5\.png.*skip.bad"):
        list(batches(Numbered(12, bad=(5, 7)), PIXELS, 4, workers=workers))


def test_a_worker_that_dies_is_reported() -> None:
    """Else the run would wait for ever, or end in a traceback that says nothing of what to do."""
    with pytest.raises(InputError, match="worker process of numbered died"):
        list(batches(Numbered(12, deadly=(5,)), PIXELS, 4, workers=2))


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"indices": [0, 3]}, {"indices": [-2]}, {"workers": -1}])
def test_arguments_out_of_range_are_refused_at_once(wrong: dict) -> None:
    with pytest.raises(InputError):
        batches(Numbered(3), PIXELS, **{"batch_size": 2, **wrong})


SCRIPT = """
import multiprocessing, os, signal, sys
from jaxclip.config import Preprocess
from jaxclip.datasets import open_source
from jaxclip.loader import batches

print("run", flush=True)
found = batches(open_source(sys.argv[1]), Preprocess(32), 2, workers=2)
next(found)
print(*(p.pid for p in multiprocessing.active_children()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL on Windows")
def test_workers_neither_rerun_an_unguarded_script_nor_outlive_it(folder: Path, tmp_path: Path) -> None:
    """Spawned processes import the main script again, and orphans would hold memory after each killed run."""
    script = tmp_path / "unguarded.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, script, folder], capture_output=True, text=True, timeout=120)
    assert done.returncode == -9, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "run", done.stderr
    assert len(lines) == 2, f"a worker ran the script again: {lines}"
    workers = [int(pid) for pid in lines[1].split()]
    assert len(workers) == 2
    until = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < until:
        time.sleep(0.1)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()], "orphans"
