"""How encoding scales over virtual devices and processes, and what the paper's whole study costs."""

import concurrent.futures
import contextlib
import math
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contest import Functions, alone, process
from benchmarks.peers import CONVERTED, IMAGES, Peer, make
from jaxclip.machine import keep_memory

TITLE = "Scaling"
CASES: dict[str, Peer] = {"ViT-B/32": ("open_clip", "ViT-B-32", "ViT-B-32")}
BATCH = 32
PASSES = 3
DEVICES = (1, 2, 4, 8)
PROCESSES = (1, 2)
PICTURES = {
    "imagenet": 50_000, "imagenet_v2": 10_000, "imagenet_r": 30_000, "imagenet_sketch": 50_889, "objectnet": 18_574,
    "imagenet_a": 7_500, "broden": 63_305,
}  # fmt: skip
H100 = {"ViT": 509e12, "ResNet": 252e12}
"""FLOP/s of encoding ViT-B/32 and CLIP's RN50 in bfloat16, as measured on one (`benchmarks/NOTES.md`)."""
PEAK = 8 * 197e12
"""Dense bfloat16 FLOP/s of a v5e-8, from the data sheet."""
UTILISATION = 0.4
DECODED = 271
"""Full-size pictures that one core decodes and resizes in a second: `benchmarks/input_pipeline.py`, 542 on 2 cores."""


def measure(label: str) -> dict[str, Any]:
    """Images per second for each number of devices and of processes, and the study's arithmetic."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        alone(make, CASES[label], folder, BATCH)
        return {
            "batch": BATCH,
            "devices": {str(n): _speed(folder, n, 1) for n in DEVICES},
            "processes": {str(n): _speed(folder, 1, n) for n in PROCESSES},
            "flop": alone(_flop, label),
            "study": alone(study),
        }


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The Markdown table, and the sentence on the study."""
    lines = ["| images/s | " + " | ".join(f"{n} device{'s' * (n > 1)}" for n in DEVICES)]
    lines[0] += " | " + " | ".join(f"{n} process{'es' * (n > 1)}" for n in PROCESSES) + " |"
    lines.append("| --- |" + " --- |" * (len(DEVICES) + len(PROCESSES)))
    for label, result in results.items():
        speeds = [*result["devices"].values(), *result["processes"].values()]
        lines.append(f"| {label} | " + " | ".join(f"{speed:.3g}" for speed in speeds) + " |")
    result = next(iter(results.values()))
    rate = result["flop"] * result["devices"]["1"]
    flop, pictures, models = result["study"]["flop"], result["study"]["pictures"], result["study"]["models"]
    work = sum(flop.values())
    minutes = sum(flop[kind] / H100[kind] for kind in flop) / 60
    rates = " and ".join(f"{some / 1e12:.0f} TFLOP/s for {kind}s" for kind, some in H100.items())
    decode = models * pictures / DECODED / 3600
    lines += [
        "",
        f"The paper's whole study is {models} models on {pictures:,} pictures, {work:.2g} FLOP. At the rate measured "
        f"here ({rate / 1e9:.0f} GFLOP/s) this machine takes {work / rate / 86400:.0f} days; at the rates measured on "
        f"an H100 in bfloat16 ({rates}) one takes {minutes:.0f} minutes. **An estimate**, at {UTILISATION:.0%} of the "
        f"data sheet's bfloat16 peak and not measured: one v5e-8 {work / (PEAK * UTILISATION) / 60:.0f} minutes. "
        f"Decoding the pictures for each model takes {decode:.0f} core hours beside, so that there decoding is the "
        "limit.",
    ]
    return "\n".join(lines)


def study() -> dict[str, Any]:
    """The paper's models and pictures, and the floating-point operations of encoding all with all, by kind of model."""
    from benchmarks.flops import encoder_flops
    from jaxclip import config, registry

    entries = [entry for entry in registry.table() if entry.paper]
    pictures = sum(PICTURES.values())
    flop = dict.fromkeys(H100, 0)
    for entry in entries:
        vision = registry.model_config(entry.name).vision
        flop["ViT" if isinstance(vision, config.ViT) else "ResNet"] += pictures * encoder_flops(vision)
    return {"models": len(entries), "pictures": pictures, "flop": flop}


def _flop(label: str) -> int:
    from benchmarks.flops import encoder_flops
    from jaxclip import registry

    return encoder_flops(registry.model_config(str(CASES[label][2])).vision)


def _speed(folder: Path, devices: int, processes: int) -> float:
    """Images per second of so many processes together, each with so many virtual devices."""
    with contextlib.ExitStack() as stack:
        calls = [stack.enter_context(process(_encoder, folder, devices)) for _ in range(processes)]
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(processes))

        def turn() -> float:
            start = time.perf_counter()
            list(pool.map(lambda call: call("encode"), calls))
            return time.perf_counter() - start

        turn()
        return processes * BATCH / statistics.median(turn() for _ in range(PASSES))


def _encoder(folder: Path, devices: int) -> Functions:
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    import jax

    import jaxclip
    from jaxclip.mesh import batch_sharding, local_mesh, parameter_sharding

    keep_memory()  # as `jaxclip embed` does
    mesh = local_mesh()
    assert mesh.size == devices
    model = jaxclip.load_model(folder / CONVERTED, sharding=parameter_sharding(mesh))
    images = jax.device_put(np.load(folder / IMAGES), batch_sharding(model.params))
    return {"encode": lambda: math.prod(jax.block_until_ready(model.encode_image(images)).shape)}
