"""One training step beside PyTorch's: same weights, same pictures, AdamW, the loss of the first step compared.

In bfloat16 both compute in bfloat16 where their own rules say so (PyTorch's autocast), and update float32 parameters.
"""

import contextlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contest import Functions, again, alone, dtype_of, process, ratio, speeds, take_turns
from benchmarks.peers import CONVERTED, IMAGES, Peer, make, torch_images, torch_model
from jaxclip.machine import keep_memory

TITLE = "One training step (forward, backward, AdamW), float32 where nothing else is said"
CASES: dict[str, Peer] = {
    "CLIP ViT-B/32, batch 16": ("open_clip", "ViT-B-32", "ViT-B-32"),
    "ResNet-50, batch 8": ("torchvision", "resnet50", "resnet50"),
}
CASES |= {f"bfloat16, {label}": peer for label, peer in CASES.items()}
CLOSE = {"float32": 1e-4, "bfloat16": 0.05}
"""How far the two losses may be apart, relatively."""
RATE, DECAY, B1, B2, EPS = 1e-4, 0.1, 0.9, 0.98, 1e-6
SECONDS = 24.0
STEPS = 4
"""On a GPU a turn takes so many, of which none waits for the one before to be read, as in ``jaxclip train``."""


def measure(label: str) -> dict[str, Any]:
    """Seconds of each side's steps."""
    peer, batch = CASES[label], int(label.rpartition(" ")[2])
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary)
        weights = alone(make, peer, folder, batch)
        ours = stack.enter_context(process(step_of_jaxclip, folder, dtype_of(label)))
        theirs = stack.enter_context(process(step_of_torch, peer, weights, folder, dtype_of(label)))
        loss, expected = ours("step").value, theirs("step").value
        check_losses(label, dtype_of(label), loss, expected)
        times = take_turns(
            {"jaxclip": lambda: again(ours, "step"), "PyTorch": lambda: again(theirs, "step")}, seconds=SECONDS
        )
        memory = {"jaxclip": ours("peak memory").value, "PyTorch": theirs("peak memory").value}
        return {"batch": batch, "seconds": times, "losses": [loss, expected], "peak memory bytes": memory}


def check_losses(label: str, dtype: str, ours: float, theirs: float) -> None:
    """Raises an AssertionError where the first steps' losses are further apart than ``CLOSE``."""
    if abs(ours / theirs - 1) > CLOSE[dtype]:
        raise AssertionError(f"{label}: the losses are {ours} and {theirs}: no fair comparison")


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The Markdown table of all results."""
    lines = [
        "| step | jaxclip, images/s | PyTorch | ratio | peak memory (PyTorch's) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for label, result in results.items():
        seconds, memory, speed = result["seconds"], result["peak memory bytes"], speeds(result)
        lines.append(
            f"| {label} | {speed['jaxclip']:.3g} | {speed['PyTorch']:.3g} "
            f"| {ratio(seconds['jaxclip'], seconds['PyTorch']):.2f} "
            f"| {memory['jaxclip'] / 1e9:.1f} ({memory['PyTorch'] / 1e9:.1f}) GB |"
        )
    return "\n".join(lines)


def _answers(batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Made-up captions (token ids that end in end-of-text) and labels."""
    random = np.random.default_rng(0)
    tokens = random.integers(1, 49406, (batch, 77))
    tokens[:, -1] = 49407
    return tokens, random.integers(0, 1000, batch)


def step_of_jaxclip(folder: Path, dtype: str) -> Functions:
    """Our side: "step" makes one and "steps" makes ``STEPS``; both give the last one's loss."""
    keep_memory()  # as `jaxclip train` does
    import jax
    import jax.numpy as jnp

    from jaxclip import checkpoint
    from jaxclip.compiler import compiler_options
    from jaxclip.training.objectives import Classes, ImageText
    from jaxclip.training.optimizer import Optimizer, make_optimizer
    from jaxclip.training.state import make_step

    config, module = checkpoint.restore(folder / CONVERTED, dtype=jnp.dtype(dtype))
    images = np.load(folder / IMAGES)
    tokens, labels = _answers(len(images))
    unchanged = ((0.0,) * 3, (1 / 255,) * 3)  # the pictures are normalised already
    objective: Any = (Classes if config.text is None else ImageText)(*unchanged)
    cfg = Optimizer("adamw", RATE, 0.0, 1.0, DECAY, B1, B2, EPS, clip_norm=None)
    step = make_step(module, objective, lambda params: make_optimizer(cfg, 100, params))
    batch = jax.device_put({"images": images, "tokens": tokens.astype(np.int32), "labels": labels})
    update = jax.jit(step.update, donate_argnums=0, compiler_options=compiler_options(ynnpack_products=True))
    state = jax.device_put(step.init(jax.random.key(0)), jax.devices()[0])  # committed, as what a step gives

    def run(count: int) -> float:
        nonlocal state
        for _ in range(count):
            state, metrics = update(state, batch)
        return float(jax.block_until_ready((state.params, metrics))[1]["loss"])

    return {"step": lambda: run(1), "steps": lambda: run(STEPS)}


def step_of_torch(peer: Peer, weights: Path, folder: Path, dtype: str, device: str = "cpu") -> Functions:
    """PyTorch's side, on a device of its own naming."""
    import torch

    model = torch_model(peer, weights).to(device).train()
    images = np.load(folder / IMAGES)
    tokens, labels = (torch.from_numpy(answer).to(device) for answer in _answers(len(images)))
    pixels = torch_images(peer, images).to(device)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(B1, B2), eps=EPS, fused=device != "cpu" or None)

    def loss() -> Any:
        if peer[0] != "open_clip":
            return torch.nn.functional.cross_entropy(model(pixels), labels)
        import open_clip

        return open_clip.loss.ClipLoss()(*model(pixels, tokens)[:3])

    def run(count: int) -> float:
        for _ in range(count):
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
                value = loss()
            value.backward()
            optimizer.step()
        return value.item()

    return {"step": lambda: run(1), "steps": lambda: run(STEPS)}
