"""On an NVIDIA GPU, in bfloat16: encoders and training steps beside PyTorch's, and the share of the card's peak.

As on a CPU both sides have the same random weights, in processes of their own on one card, which holds their pictures.
Encoders take turns; of training steps, which need most of the memory, one side's come after the other's. PyTorch's
encoder is of bfloat16 as a whole; its training step runs in autocast, eagerly, with AdamW in one kernel. What a product
of 8192 x 8192 matrices reaches is the card's measured peak.
"""

import contextlib
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import training
from benchmarks.contest import Functions, Turn, alone, process, ratio, speeds, take_turns
from benchmarks.peers import CLOSE, CONVERTED, IMAGES, Peer, make, torch_images, torch_model

TITLE = "On a GPU, in bfloat16"
GEMM, PRODUCTS = 8192, 20
"""Side of the matrix product, and how many a turn takes."""
BATCHES = 8
"""What an encoder's turn takes, one after the other."""
SECONDS = 5.0
PEAK = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12, "NVIDIA A100-SXM4-80GB": 312e12}
"""Dense bfloat16 FLOP/s, from the data sheets."""


class Case(NamedTuple):
    """A model, and the pictures that are encoded, or trained with, at once."""

    peer: Peer
    batch: int
    train: bool = False


VIT_L: Peer = ("open_clip", "ViT-L-14", "ViT-L-14")
CASES = {
    "encoding ViT-L/14, GPU": Case(VIT_L, 256),
    "encoding ViT-B/32, GPU": Case(("open_clip", "ViT-B-32", "ViT-B-32"), 1024),
    "encoding CLIP RN50, GPU": Case(("open_clip", "RN50", "RN50"), 512),
    "a training step of CLIP ViT-L/14, GPU": Case(VIT_L, 128, train=True),
}


def measure(label: str) -> dict[str, Any]:
    """The seconds of each contestant's batches, the arithmetic of one, and the most memory of the card."""
    peer, batch, train = CASES[label]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        weights = alone(make, peer, folder, batch if train else 64)
        found = (_train if train else _encode)(label, peer, weights, folder, batch)
        return {"batch": batch, "product flop": PRODUCTS * 2 * GEMM**3, **found}


def _encode(label: str, peer: Peer, weights: Path, folder: Path, batch: int) -> dict[str, Any]:
    from checkpoints_conversion.verify import difference

    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(process(_our_encoder, folder, batch))
        theirs = stack.enter_context(process(_their_encoder, peer, weights, folder, batch))
        runs: dict[str, Callable[[], Turn]] = {
            "jaxclip": lambda: ours("encode"),
            "PyTorch": lambda: theirs("encode"),
            "torch.compile": lambda: theirs("encode compiled"),
        }
        h = {name: run().value for name, run in runs.items()}
        errors = {name: difference(label, h["jaxclip"], h[name]).relative for name in ("PyTorch", "torch.compile")}
        if max(errors.values()) > CLOSE["bfloat16"]:
            raise AssertionError(f"{label}: outputs are {errors} from ours: no fair comparison")
        ours("gemm")
        times = take_turns({"XLA GEMM": lambda: ours("gemm"), **runs}, seconds=SECONDS)
        return {
            "machine": ours("card").value,
            "flop": ours("flop").value * batch,
            "seconds": {name: [s / BATCHES if name in runs else s for s in taken] for name, taken in times.items()},
            "memory": {"jaxclip": ours("memory").value, "PyTorch": theirs("memory").value},
            "relative error": errors,
        }


def _train(label: str, peer: Peer, weights: Path, folder: Path, batch: int) -> dict[str, Any]:
    with process(_our_step, folder) as ours:
        found = {"machine": ours("card").value, "flop": 3 * ours("flop").value * batch}
        losses = {"jaxclip": ours("step").value}
        ours("step")
        ours("gemm")
        seconds = take_turns({"XLA GEMM": lambda: ours("gemm"), "jaxclip": lambda: ours("steps")}, seconds=SECONDS)
        memory = {"jaxclip": ours("memory").value}
    with process(_their_step, peer, weights, folder) as theirs:
        losses["PyTorch"] = theirs("step").value
        training.check_losses(label, "bfloat16", losses["jaxclip"], losses["PyTorch"])
        theirs("step")
        turns = len(seconds["jaxclip"])
        seconds |= take_turns({"PyTorch": lambda: theirs("steps")}, seconds=SECONDS, least=turns, most=turns)
        memory["PyTorch"] = theirs("memory").value
    seconds |= {name: [s / training.STEPS for s in seconds[name]] for name in losses}
    return {**found, "seconds": seconds, "memory": memory, "losses": losses}


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The Markdown table of all results."""
    lines = [
        "| | jaxclip, images/s | PyTorch | torch.compile | ratio to the best | TFLOP/s | of the measured product "
        "| of the data sheet's peak | memory (PyTorch's) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for label, result in results.items():
        seconds, memory, speed = result["seconds"], result["memory"], speeds(result)
        best = max(speed.keys() & {"PyTorch", "torch.compile"}, key=lambda name: speed[name])
        rate = result["flop"] / result["batch"] * speed["jaxclip"]
        measured = result["product flop"] / statistics.median(seconds["XLA GEMM"]) if "XLA GEMM" in seconds else None
        peak = next((peak for card, peak in PEAK.items() if result["machine"].startswith(card)), None)
        cells = [
            f"{label.removesuffix(', GPU')}, batch {result['batch']}",
            *(f"{speed[name]:.0f}" if name in speed else "–" for name in ("jaxclip", "PyTorch", "torch.compile")),
            f"{ratio(seconds['jaxclip'], seconds[best]):.2f}",
            f"{rate / 1e12:.0f}",
            *(f"{rate / limit:.0%}" if limit else "–" for limit in (measured, peak)),
            f"{memory['jaxclip'] / 1e9:.1f} ({memory['PyTorch'] / 1e9:.1f}) GB",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _our_encoder(folder: Path, batch: int) -> Functions:
    functions = _card()
    import jax.numpy as jnp

    import jaxclip
    from benchmarks.flops import encoder_flops

    model = jaxclip.load_model(folder / CONVERTED, dtype="bfloat16")
    images = jnp.asarray(_pictures(folder, batch), "bfloat16")
    return functions | {
        "encode": lambda: np.asarray([model.encode_image(images) for _ in range(BATCHES)][-1]),
        "flop": lambda: encoder_flops(model.config.vision),
    }


def _our_step(folder: Path) -> Functions:
    functions = _card()
    from benchmarks.flops import encoder_flops, text_flops
    from jaxclip.checkpoint import read_config

    def forward() -> int:
        """Of one picture and, for a CLIP, its caption."""
        config = read_config(folder / CONVERTED)
        return encoder_flops(config.vision) + (0 if config.text is None else text_flops(config.text))

    return functions | training.step_of_jaxclip(folder, "bfloat16") | {"flop": forward}


def _card() -> Functions:
    os.environ.update(JAX_PLATFORMS="cuda,cpu", XLA_PYTHON_CLIENT_PREALLOCATE="false")  # PyTorch has the card too
    import jax

    from jaxclip.compiler import compiler_options
    from jaxclip.models.layers import multiply

    card = jax.local_devices()[0]
    square = jax.random.normal(jax.random.key(0), (GEMM, GEMM), "bfloat16")
    product = jax.jit(multiply, compiler_options=compiler_options(ynnpack_products=True))
    return {
        "card": lambda: f"{card.device_kind}, " + ", ".join(f"{name} {version(name)}" for name in ("jax", "torch")),
        "gemm": lambda: jax.block_until_ready([product(square, square) for _ in range(PRODUCTS)][-1]).shape,
        "memory": lambda: (card.memory_stats() or {}).get("peak_bytes_in_use", 0),
    }


def _their_encoder(peer: Peer, weights: Path, folder: Path, batch: int) -> Functions:
    import torch

    tower = torch_model(peer, weights).visual.to("cuda", torch.bfloat16)
    images = torch_images(peer, _pictures(folder, batch)).to("cuda", torch.bfloat16)
    compiled = torch.compile(tower)

    def encode(encoder: Any) -> Any:
        with torch.inference_mode():
            return [encoder(images) for _ in range(BATCHES)][-1].float().cpu().numpy()

    return {
        "encode": lambda: encode(tower),
        "encode compiled": lambda: encode(compiled),
        "memory": torch.cuda.max_memory_allocated,
    }


def _their_step(peer: Peer, weights: Path, folder: Path) -> Functions:
    import torch

    step = training.step_of_torch(peer, weights, folder, "bfloat16", "cuda")
    return step | {"memory": torch.cuda.max_memory_allocated}


def _pictures(folder: Path, batch: int) -> np.ndarray:
    """So many of the folder's pictures, again and again."""
    images = np.load(folder / IMAGES)
    return np.resize(images, (batch, *images.shape[1:]))
