"""Image encoders beside the libraries they come from: same weights, same pictures, same machine, in turn.

The reference library builds the model with random weights and saves it; jaxclip converts that file. Two processes load
it, ours and PyTorch's, and their outputs on 32 real pictures are compared before anything is timed.
"""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contest import Functions, Turn, alone, process, ratio, take_turns
from benchmarks.peers import CONVERTED, IMAGES, Peer, make, torch_images, torch_model

TITLE = "Image encoders, float32, batch 32, on the same pictures"
BATCH = 32
GEMM = 2048
SMALL_GEMM = 512
"""Side of the bfloat16 product: a processor without bfloat16 instructions takes PyTorch minutes for a large one."""
SECONDS = 12.0
"""About how long the slowest contestant may run."""
CASES: dict[str, Peer] = {
    "ViT-B/32": ("open_clip", "ViT-B-32", "ViT-B-32"),
    "ViT-B/16": ("open_clip", "ViT-B-16", "ViT-B-16"),
    "ViT-L/14": ("open_clip", "ViT-L-14", "ViT-L-14"),
    "CLIP RN50": ("open_clip", "RN50", "RN50"),
    "CLIP RN101": ("open_clip", "RN101", "RN101"),
    "ResNet-50": ("torchvision", "resnet50", "resnet50"),
}
BFLOAT16 = "ViT-B/32"


def measure(label: str) -> dict[str, Any]:
    """One encoder: the seconds of each contestant's turns, and what the two processes cost."""
    from checkpoints_conversion.parity import TOLERANCE  # PyTorch comes with it: not for our contestant
    from checkpoints_conversion.verify import difference

    peer = CASES[label]
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary)
        weights = alone(make, peer, folder, BATCH)
        first: dict[str, Turn] = {}
        waited = {}
        start = time.perf_counter()
        ours = stack.enter_context(process(_jaxclip, folder))
        first["jaxclip"] = ours("encode")
        waited["jaxclip"], start = time.perf_counter() - start, time.perf_counter()
        theirs = stack.enter_context(process(_torch, peer, weights, folder))
        first["PyTorch"] = theirs("encode")
        waited["PyTorch"] = time.perf_counter() - start
        memory = {"jaxclip": ours("peak memory").value, "PyTorch": theirs("peak memory").value}
        first["torch.compile"] = theirs("encode compiled")
        errors = {}
        for name in ("PyTorch", "torch.compile"):
            errors[name] = difference(label, first["jaxclip"].value, first[name].value).relative
            if errors[name] > TOLERANCE:
                raise AssertionError(f"{label}: {name}'s output is {errors[name]:.1e} from ours: no fair comparison")
        runs: dict[str, Callable[[], Turn]] = {
            "jaxclip": lambda: ours("encode"),
            "PyTorch": lambda: theirs("encode"),
            "torch.compile": lambda: theirs("encode compiled"),
            "XLA GEMM": lambda: ours("gemm"),
            "PyTorch GEMM": lambda: theirs("gemm"),
        }
        if label == BFLOAT16:
            runs |= {
                "jaxclip, bfloat16": lambda: ours("encode bfloat16"),
                "XLA GEMM, bfloat16": lambda: ours("gemm bfloat16"),
                "PyTorch GEMM, bfloat16": lambda: theirs("gemm bfloat16"),
            }
        for name, run in runs.items():
            if name not in first:  # warm already
                run()
        times = take_turns(runs, seconds=SECONDS)
        compiling = {name: turn.seconds - statistics.median(times[name]) for name, turn in first.items()}
        return {
            "batch": BATCH,
            "flop": ours("flop").value,
            "seconds": times,
            "compile seconds": compiling,
            "first batch seconds": waited,
            "peak memory bytes": memory,
            "relative error": errors,
        }


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The Markdown table of all results."""
    lines = [
        "| encoder | jaxclip, images/s | PyTorch | torch.compile | ratio to the best | of XLA's GEMM limit "
        "| peak memory (PyTorch's) | compilation (torch.compile's) | first batch (PyTorch's) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for label, result in results.items():
        seconds, batch = result["seconds"], result["batch"]
        speed = {name: batch / statistics.median(taken) for name, taken in seconds.items()}
        best = max(("PyTorch", "torch.compile"), key=lambda name: speed[name])
        limit = 2 * GEMM**3 / statistics.median(seconds["XLA GEMM"])
        share = result["flop"] / batch * speed["jaxclip"] / limit
        memory, compiling = result["peak memory bytes"], result["compile seconds"]
        waited = result["first batch seconds"]
        lines.append(
            f"| {label} | {speed['jaxclip']:.3g} | {speed['PyTorch']:.3g} | {speed['torch.compile']:.3g} "
            f"| {ratio(seconds['jaxclip'], seconds[best]):.2f} | {share:.0%} "
            f"| {memory['jaxclip'] / 1e9:.1f} ({memory['PyTorch'] / 1e9:.1f}) GB "
            f"| {compiling['jaxclip']:.1f} ({compiling['torch.compile']:.0f}) s "
            f"| {waited['jaxclip']:.0f} ({waited['PyTorch']:.0f}) s |"
        )
    if half := results.get(BFLOAT16):
        lines += ["", _half(half["seconds"])]
    return "\n".join(lines)


def _half(seconds: Mapping[str, list[float]]) -> str:
    """The sentence on matrix products, and on bfloat16."""

    def rate(name: str, side: int) -> str:
        return f"{2 * side**3 / statistics.median(seconds[name]) / 1e9:.3g}"

    return (
        f"Matrix products: {GEMM}³ float32 {rate('XLA GEMM', GEMM)} GFLOP/s in XLA, {rate('PyTorch GEMM', GEMM)} in "
        f"PyTorch; {SMALL_GEMM}³ bfloat16 {rate('XLA GEMM, bfloat16', SMALL_GEMM)} in XLA, "
        f"{rate('PyTorch GEMM, bfloat16', SMALL_GEMM)} in PyTorch. {BFLOAT16} in bfloat16 runs at "
        f"{ratio(seconds['jaxclip, bfloat16'], seconds['jaxclip']):.2f} times the speed of float32."
    )


def _jaxclip(folder: Path) -> Functions:
    import jax
    import jax.numpy as jnp

    import jaxclip
    from benchmarks.flops import flops

    model = jaxclip.load_model(folder / CONVERTED)
    images = jnp.asarray(np.load(folder / IMAGES))
    product = jax.jit(jnp.matmul)
    square = jnp.ones((GEMM, GEMM))
    small = jnp.ones((SMALL_GEMM, SMALL_GEMM), jnp.bfloat16)
    half: list[jaxclip.Model] = []

    def encode_half() -> None:
        if not half:
            half.append(jaxclip.load_model(folder / CONVERTED, dtype="bfloat16"))
        jax.block_until_ready(half[0].encode_image(images))

    return {
        "encode": lambda: np.asarray(model.encode_image(images)),
        "encode bfloat16": encode_half,
        "gemm": lambda: jax.block_until_ready(product(square, square)).shape,
        "gemm bfloat16": lambda: jax.block_until_ready(product(small, small)).shape,
        "flop": lambda: flops(model.representation, model.params, images),
    }


def _torch(peer: Peer, weights: Path, folder: Path) -> Functions:
    import torch

    model = torch_model(peer, weights)
    if peer[0] == "torchvision":
        model.fc = torch.nn.Identity()
    tower = getattr(model, "visual", model)
    images = torch_images(peer, np.load(folder / IMAGES))
    compiled = torch.compile(tower)
    square = torch.ones(GEMM, GEMM)
    small = torch.ones(SMALL_GEMM, SMALL_GEMM, dtype=torch.bfloat16)
    functions: Functions = {
        "encode": lambda: tower(images).numpy(),
        "encode compiled": lambda: compiled(images).numpy(),
        "gemm": lambda: (square @ square).shape,
        "gemm bfloat16": lambda: (small @ small).shape,
    }
    return {name: torch.inference_mode()(function) for name, function in functions.items()}
