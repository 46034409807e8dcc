"""WiSE-FT: checkpoints on the line between two models of one architecture (Wortsman et al. 2022)."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Array, Float

from jaxclip import checkpoint
from jaxclip.errors import InputError

Arrays = Mapping[str, Float[Array, "..."] | Float[np.ndarray, "..."]]


def interpolate(a: Arrays, b: Arrays, alpha: float) -> dict[str, Float[np.ndarray, "..."]]:
    """(1 - alpha) a + alpha b, array by array: computed in float64, rounded once, and exactly an end at 0 and at 1."""
    return {
        name: ((1 - alpha) * np.asarray(x, np.float64) + alpha * np.asarray(b[name], np.float64)).astype(np.float32)
        for name, x in a.items()
    }


def interpolate_checkpoints(
    a: str | os.PathLike,
    b: str | os.PathLike,
    alphas: Sequence[float],
    out: str | os.PathLike,
    *,
    overwrite: bool = False,
) -> dict[float, Path]:
    """Writes a checkpoint for each alpha, to ``out/alpha_0.50`` and so on.

    Args:
        a: The checkpoint at alpha 0: as a rule the zero-shot classifier that ``jaxclip finetune`` writes.
        b: The checkpoint at alpha 1: the fine-tuned one.
        alphas: From 0 to 1.
        out: The folder for them.
        overwrite: Replace those that exist.

    Returns:
        The folder of each alpha.

    Raises:
        InputError: The two are not of one architecture, an alpha is out of range or given twice, or a folder is there
            (with ``overwrite``, one that is no checkpoint).
    """
    if not alphas:
        raise InputError("give at least one --alpha, from 0 to 1")
    for alpha in alphas:
        if not 0 <= alpha <= 1:
            raise InputError(f"alpha is {alpha}: it must be from 0 to 1")
    folders = {alpha: Path(out) / f"alpha_{alpha:.2f}" for alpha in alphas}
    if len(set(folders.values())) < len(alphas):
        raise InputError(f"alphas {', '.join(map(str, alphas))}: two of them are the same to two decimals")
    for folder in folders.values():
        checkpoint.check_free(folder, overwrite)
    config, first = checkpoint.restore(a)
    other, second = checkpoint.restore(b)
    for field in ("vision", "text", "num_classes", "logit_bias", "preprocess"):
        ours, theirs = getattr(config, field), getattr(other, field)
        if ours != theirs:
            hint = (
                " (take the zero_shot folder that `jaxclip finetune` wrote)" if field in ("text", "num_classes") else ""
            )
            raise InputError(f"{a} and {b} cannot be interpolated: their {field} is not the same{hint}")
    start, end = checkpoint.named(first), checkpoint.named(second)
    for alpha, folder in folders.items():
        source = {"interpolated": [str(a), str(b)], "alpha": alpha, "ends": [config.source, other.source]}
        mixed = interpolate(start, end, alpha)
        mine = dataclasses.replace(other, name=f"{other.name}-{folder.name}", source=source)
        checkpoint.save(folder, mine, mixed, overwrite=overwrite)
    return folders
