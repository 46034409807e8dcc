"""From picture files to stored representations: `jaxclip embed` beside open_clip with a DataLoader, as CLIP_benchmark.

Both are commands of their own, timed from their start to their end: imports, weights, compilation, 1,000 pictures, the
file. jaxclip's first turn starts with an empty compilation cache. PyTorch's side is float32, as CLIP_benchmark is on
a CPU.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contest import Turn, alone, dtype_of, ratio, take_turns
from benchmarks.peers import CLOSE, CONVERTED, Peer, make, torch_model

TITLE = "From 1,000 ImageNet files to stored representations, whole commands"
CASES: dict[str, Peer] = {
    "ViT-B/32": ("open_clip", "ViT-B-32", "ViT-B-32"),
    "ViT-B/32, ours in bfloat16, theirs in float32": ("open_clip", "ViT-B-32", "ViT-B-32"),
}
BATCH = 64
WORKERS = 2
SECONDS = 240.0


def measure(label: str) -> dict[str, Any]:
    """Seconds of each command, and how far their representations are apart."""
    from checkpoints_conversion.parity import SAMPLES
    from checkpoints_conversion.verify import difference
    from jaxclip.store import open_store

    files = sorted(SAMPLES.glob("*.JPEG"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        weights = alone(make, CASES[label], folder)
        ours = [
            *(sys.executable, "-m", "jaxclip", "embed", "--model", str(folder / CONVERTED)),
            *("--data", str(SAMPLES), "--batch-size", str(BATCH), "--dtype", dtype_of(label), "--out"),
        ]
        theirs = [sys.executable, "-m", "benchmarks.end_to_end", *CASES[label][:2], str(weights), str(SAMPLES)]
        environment = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"), "JAX_PLATFORMS": "cpu"}
        turns = {"jaxclip": 0, "PyTorch": 0}

        def command(name: str, words: list[str]) -> Callable[[], Turn]:
            def run() -> Turn:
                turns[name] += 1
                start = time.perf_counter()
                out = str(folder / f"{name} {turns[name]}")
                subprocess.run([*words, out], check=True, env=os.environ | environment, stdout=subprocess.DEVNULL)
                return Turn(time.perf_counter() - start, None)

            return run

        times = take_turns(
            {"jaxclip": command("jaxclip", ours), "PyTorch": command("PyTorch", theirs)}, seconds=SECONDS
        )
        (stored,) = (open_store(path.parent) for path in (folder / "jaxclip 1").glob("*/manifest.json"))
        gap = difference(label, stored[:], np.load(folder / "PyTorch 1.npy"))
        if gap.relative > CLOSE[dtype_of(label)]:
            raise AssertionError(f"{label}: representations are {gap.relative:.1e} apart: no fair comparison")
        return {"pictures": len(files), "seconds": times, "relative error": gap.relative}


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The Markdown table of all results."""
    lines = [
        f"| encoder | `jaxclip embed` | open_clip, DataLoader of {WORKERS} workers | ratio |",
        "| --- | --- | --- | --- |",
    ]
    for label, result in results.items():
        ours, theirs = result["seconds"]["jaxclip"], result["seconds"]["PyTorch"]
        lines.append(
            f"| {label} | {statistics.median(ours):.0f} s | {statistics.median(theirs):.0f} s "
            f"| {ratio(ours, theirs):.2f} |"
        )
    return "\n".join(lines)


class _Pictures:
    """The files as a torch data set."""

    def __init__(self, files: list[Path], transform: Any):
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        return self.transform(Image.open(self.files[index]))


def _peer(library: str, name: str, weights: str, pictures: str, out: str) -> None:
    """CLIP_benchmark's way: open_clip's own transform in a DataLoader, ``encode_image`` without gradients."""
    import open_clip
    import torch
    from torch.utils.data import DataLoader

    model = torch_model((library, name, None), Path(weights))
    transform = open_clip.image_transform(model.visual.image_size, is_train=False)
    files: Any = _Pictures(sorted(Path(pictures).glob("*.JPEG")), transform)
    with torch.no_grad():
        features = [model.encode_image(images) for images in DataLoader(files, BATCH, num_workers=WORKERS)]
    np.save(f"{out}.npy", torch.cat(features).numpy())


if __name__ == "__main__":
    _peer(*sys.argv[1:])
