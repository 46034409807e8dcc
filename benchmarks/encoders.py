"""Image encoders beside the libraries they come from: same weights, same pictures, same machine, in turn.

The reference library builds the model with random weights and saves it; jaxclip converts that file. Two processes load
it, ours and PyTorch's, and their outputs on 32 real pictures are compared before anything is timed. In bfloat16
PyTorch's whole model is of that type, and our norms, softmax, activations and sums are float32.
"""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contest import Functions, Turn, again, alone, dtype_of, process, ratio, span, speeds, take_turns
from benchmarks.peers import CLOSE, CONVERTED, IMAGES, Peer, make, torch_images, torch_model
from jaxclip.machine import keep_memory

TITLE = "Image encoders, batch 32, on the same pictures, float32 where nothing else is said"
BATCH = 32
GEMM, PRODUCTS = 2048, 5
"""Side of the matrix product, and how many a turn takes."""
XLA = ("XLA GEMM", "XLA GEMM by YNNPACK")
"""XLA's limit is the faster of its own products and YNNPACK's."""
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
CASES |= {f"{label}, bfloat16": CASES[label] for label in ("ViT-B/32", "ViT-B/16", "ViT-L/14", "CLIP RN50")}


def measure(label: str) -> dict[str, Any]:
    """One encoder: the seconds of each contestant's turns, and what the two processes cost."""
    from checkpoints_conversion.verify import difference

    peer = CASES[label]
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary)
        weights = alone(make, peer, folder, BATCH)
        first: dict[str, Turn] = {}
        waited = {}
        start = time.perf_counter()
        ours = stack.enter_context(process(_jaxclip, folder, dtype_of(label)))
        first["jaxclip"] = ours("encode")
        waited["jaxclip"], start = time.perf_counter() - start, time.perf_counter()
        theirs = stack.enter_context(process(_torch, peer, weights, folder, dtype_of(label)))
        first["PyTorch"] = theirs("encode")
        waited["PyTorch"] = time.perf_counter() - start
        memory = {"jaxclip": ours("peak memory").value, "PyTorch": theirs("peak memory").value}
        first["torch.compile"] = theirs("encode compiled")
        errors = {}
        for name in ("PyTorch", "torch.compile"):
            errors[name] = difference(label, first["jaxclip"].value, first[name].value).relative
            if errors[name] > CLOSE[dtype_of(label)]:
                raise AssertionError(f"{label}: {name}'s output is {errors[name]:.1e} from ours: no fair comparison")
        # A process that has waited long is slow at first: its products come before its encoder.
        runs: dict[str, Callable[[], Turn]] = {
            "XLA GEMM by YNNPACK": lambda: ours("gemm by ynnpack"),
            "XLA GEMM": lambda: ours("gemm"),
            "jaxclip": lambda: again(ours, "encode"),
            "PyTorch GEMM": lambda: theirs("gemm"),
            "PyTorch": lambda: again(theirs, "encode"),
            "torch.compile": lambda: again(theirs, "encode compiled"),
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
        seconds, batch, speed = result["seconds"], result["batch"], speeds(result)
        best = max(("PyTorch", "torch.compile"), key=lambda name: speed[name])
        share = result["flop"] / batch * speed["jaxclip"] / _rate(seconds, XLA)
        memory, compiling = result["peak memory bytes"], result["compile seconds"]
        waited = result["first batch seconds"]
        lines.append(
            f"| {label} | {speed['jaxclip']:.3g} | {speed['PyTorch']:.3g} | {speed['torch.compile']:.3g} "
            f"| {ratio(seconds['jaxclip'], seconds[best]):.2f} | {share:.0%} "
            f"| {memory['jaxclip'] / 1e9:.1f} ({memory['PyTorch'] / 1e9:.1f}) GB "
            f"| {compiling['jaxclip']:.1f} ({compiling['torch.compile']:.0f}) s "
            f"| {waited['jaxclip']:.0f} ({waited['PyTorch']:.0f}) s |"
        )
    rates = []
    for kind in ("float32", "bfloat16"):
        xla, pytorch = (
            [_rate(result["seconds"], names) / 1e9 for label, result in results.items() if dtype_of(label) == kind]
            for names in (XLA, ("PyTorch GEMM",))
        )
        if xla:
            rates.append(f"{kind} {span(xla, '.0f')} GFLOP/s in XLA, {span(pytorch, '.0f')} in PyTorch")
    return "\n".join([*lines, "", f"Matrix products of {GEMM}³, beside each encoder: {'; '.join(rates)}."])


def _rate(seconds: Mapping[str, Sequence[float]], names: Sequence[str]) -> float:
    """FLOP/s of the matrix products, by the fastest of the libraries in ``names``."""
    return PRODUCTS * 2 * GEMM**3 / min(statistics.median(seconds[name]) for name in names)


def _jaxclip(folder: Path, dtype: str) -> Functions:
    keep_memory()  # as `jaxclip embed` does
    import jax
    import jax.numpy as jnp

    import jaxclip
    from benchmarks.flops import encoder_flops
    from jaxclip.compiler import compiler_options
    from jaxclip.models.layers import multiply

    model = jaxclip.load_model(folder / CONVERTED, dtype=dtype)
    images = jnp.asarray(np.load(folder / IMAGES))
    square = jnp.ones((GEMM, GEMM), dtype)

    def products(ynnpack: bool) -> Callable[[], Any]:
        product = jax.jit(multiply, compiler_options=compiler_options(ynnpack_products=ynnpack))
        return lambda: [jax.block_until_ready(product(square, square)).shape for _ in range(PRODUCTS)]

    return {
        "encode": lambda: np.asarray(model.encode_image(images)),
        "gemm": products(ynnpack=False),
        "gemm by ynnpack": products(ynnpack=True),
        "flop": lambda: encoder_flops(model.config.vision) * BATCH,
    }


def _torch(peer: Peer, weights: Path, folder: Path, dtype: str) -> Functions:
    import torch

    kind = getattr(torch, dtype)
    model = torch_model(peer, weights)
    if peer[0] == "torchvision":
        model.fc = torch.nn.Identity()
    tower = getattr(model, "visual", model).to(kind)
    images = torch_images(peer, np.load(folder / IMAGES)).to(kind)
    compiled = torch.compile(tower)
    square = torch.ones(GEMM, GEMM, dtype=kind)
    functions: Functions = {
        "encode": lambda: tower(images).float().numpy(),
        "encode compiled": lambda: compiled(images).float().numpy(),
        "gemm": lambda: [(square @ square).shape for _ in range(PRODUCTS)],
    }
    return {name: torch.inference_mode()(function) for name, function in functions.items()}
