"""The optimiser of a recipe, from Optax's parts: named parameters in, a gradient transformation out."""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxclip.config import check_choices, check_integers
from jaxclip.errors import InputError


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW (Loshchilov and Hutter 2019) or SGD with momentum, under a cosine that warms up linearly.

    Attributes:
        name: Which. SGD's weight decay is added to the gradient, as PyTorch's; AdamW's is decoupled.
        learning_rate: At the peak.
        warmup: The share of all updates during which the rate rises from zero.
        final: What the rate falls to, as a share of the peak.
        weight_decay: Of matrices and embeddings; never of norms, biases, class tokens or the temperature.
        b1: AdamW's, or SGD's momentum.
        b2: AdamW's.
        eps: AdamW's.
        clip_norm: The largest norm of all gradients together; None leaves them.
        layer_decay: The rate of each layer is this times the next one's (Clark et al. 2020; Bao et al. 2022).
        ema_decay: Keep an exponential moving average of the parameters, which is then what is evaluated and written.
        accumulate: Average the gradients of so many batches for one update. A contrastive loss then compares
            within each batch only. A run's steps are rounded down to whole updates.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    warmup: float = 0.05
    final: float = 0.0
    weight_decay: float = 0.1
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-6
    clip_norm: float | None = 1.0
    layer_decay: float = 1.0
    ema_decay: float | None = None
    accumulate: int = 1

    def __post_init__(self):
        check_choices("optimizer", self)
        check_integers("optimizer", self)
        checks = {
            "learning_rate": 0 < self.learning_rate < math.inf,
            "warmup": 0 <= self.warmup < 1,
            "final": 0 <= self.final <= 1,
            "weight_decay": 0 <= self.weight_decay < math.inf,
            "b1": 0 <= self.b1 < 1,
            "b2": 0 <= self.b2 < 1,
            "eps": 0 <= self.eps < math.inf,
            "clip_norm": self.clip_norm is None or self.clip_norm > 0,
            "layer_decay": 0 < self.layer_decay <= 1,
            "ema_decay": self.ema_decay is None or 0 < self.ema_decay < 1,
            "accumulate": self.accumulate >= 1,
        }
        for field, good in checks.items():
            if not good:
                raise InputError(f"optimizer: {field} is {getattr(self, field)}, which is out of range")


def schedule(cfg: Optimizer, updates: int) -> optax.Schedule:
    """The learning rate over a run of so many updates."""
    warmup = round(cfg.warmup * updates)
    return optax.warmup_cosine_decay_schedule(
        0.0 if warmup else cfg.learning_rate,
        cfg.learning_rate,
        warmup,
        max(updates, warmup + 1),
        cfg.final * cfg.learning_rate,
    )


def make_optimizer(cfg: Optimizer, updates: int, params: Mapping[str, Array]) -> optax.GradientTransformation:
    """The chain: clip, (decay), adapt, decay, layer-wise factor, rate; then accumulation around all of it.

    Args:
        cfg: The recipe's.
        updates: Updates of the whole run: steps divided by ``cfg.accumulate``.
        params: The parameters that are trained, by name.
    """
    decay = optax.add_decayed_weights(cfg.weight_decay, {name: decays(name) for name in params})
    adapt = (
        [optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps), decay]
        if cfg.name == "adamw"
        else [decay, optax.trace(decay=cfg.b1)]
    )
    factors = layer_factors(params, cfg.layer_decay)
    tx = optax.chain(
        *([optax.stateless(functools.partial(clipped, cfg.clip_norm))] if cfg.clip_norm is not None else []),
        *adapt,
        *([optax.stateless(lambda u, _: jax.tree.map(jnp.multiply, u, factors))] if cfg.layer_decay < 1 else []),
        optax.scale_by_learning_rate(schedule(cfg, updates)),
    )
    if cfg.accumulate > 1:
        return optax.MultiSteps(tx, cfg.accumulate).gradient_transformation()
    return tx


def gradient_norm(gradients: Mapping[str, Float[Array, "..."]]) -> Float[Array, ""]:
    """The length of all gradients together: optax's ``tree.norm``, as products with themselves.

    Squares, XLA's CPU backend would write out, where Adam needs them too.
    """
    return jnp.sqrt(optax.tree.vdot(gradients, gradients))


def clipped(most: float, gradients: Mapping[str, Float[Array, "..."]], _: Any = None) -> dict[str, Float[Array, "..."]]:
    """Optax's ``clip_by_global_norm``, of :func:`gradient_norm`; a step that logs it too computes it once."""
    factor = jnp.minimum(1.0, most / gradient_norm(gradients))
    return {name: gradient * factor for name, gradient in gradients.items()}


def decays(name: str) -> bool:
    """Whether weight decay is for the parameter of this name: open_clip's rule, but by name, as our blocks are stacked.

    open_clip leaves out what has one axis (norms, biases, the class token, LayerScale) and the temperature. Position
    embeddings have two axes and do decay, as there.
    """
    return re.fullmatch(r"(scale\d?|bias|class_token|logit_scale|logit_bias)", name.rpartition(".")[2]) is None


def layer_factors(params: Mapping[str, Array], decay: float) -> dict[str, Float[Array, "..."]]:
    """For each parameter what its rate is multiplied with: ``decay ** (layers above it)``.

    The layers of a tower, counted from the input: its embeddings or stem, its blocks or stages, then what is behind
    them together with the head and the temperature, whose factor is 1. Stacked blocks get one factor for each.
    """
    depths: dict[str, int] = {}
    for name, value in params.items():
        tower, _, inner = name.partition(".")
        if match := re.match(r"transformer\.blocks\.|stages\.(\d+)\.", inner):
            depths[tower] = max(depths.get(tower, 0), int(match[1]) + 1 if match[1] else value.shape[0])

    def factor(name: str, value: Array) -> Array:
        tower, _, inner = name.partition(".")
        depth = depths.get(tower, 0)
        if inner.startswith("transformer.blocks."):
            return decay ** jnp.arange(depth, 0, -1.0).reshape(-1, *[1] * (value.ndim - 1))
        if match := re.match(r"stages\.(\d+)\.", inner):
            return jnp.asarray(decay ** (depth - int(match[1])))
        return jnp.asarray(decay ** (depth + 1) if inner and _is_input(inner) else 1.0)

    return {name: factor(name, value) for name, value in params.items()}


_INPUTS = (
    "patch_embedding.", "token_embedding.", "class_token", "positions", "norm_pre.", "conv", "bn",
)  # fmt: skip


def _is_input(inner: str) -> bool:
    return inner.startswith(_INPUTS)
