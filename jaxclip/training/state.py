"""What a training run carries from step to step, and the step: pure functions of named arrays."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jaxclip import checkpoint
from jaxclip.models import clip
from jaxclip.training.losses import clip_log_scale
from jaxclip.training.optimizer import gradient_norm

Batch = Mapping[str, Array]
Objective = Callable[[Any, Batch, Key[Array, ""]], tuple[Float[Array, ""], dict[str, Array]]]
"""Model in training mode, batch, key → the loss, and what else is worth logging."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step reads and writes; names are those of :func:`jaxclip.checkpoint.named`.

    Attributes:
        step: Steps done.
        params: The parameters that are trained, float32.
        rest: Frozen parameters, and the running moments of batch norms.
        optimizer: Optax's state.
        average: The exponential moving average of ``params`` and ``rest``; empty where none is kept.
        key: The random key of the run; each step folds its number in.
    """

    step: Int[Array, ""]
    params: dict[str, Array]
    rest: dict[str, Array]
    optimizer: Any
    average: dict[str, Array]
    key: Key[Array, ""]


class Step(NamedTuple):
    """How a model is trained: ``init(key)`` makes the state, ``update(state, batch)`` the next and its metrics."""

    init: Callable[[Key[Array, ""]], TrainState]
    update: Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]


def make_step(
    module: clip.CLIP | clip.Classifier,
    objective: Objective,
    optimizer: Callable[[Mapping[str, Array]], optax.GradientTransformation],
    *,
    trainable: Callable[[str], bool] = lambda name: True,
    ema_decay: float | None = None,
    accumulate: int = 1,
) -> Step:
    """The jittable training step of a model.

    Args:
        module: The model; its arrays are the start, and stay where they are.
        objective: The loss.
        optimizer: From the trained parameters, the optimiser.
        trainable: Which parameters are trained, by name. Where the whole vision tower is frozen, so are the moments of
            its batch norms, which then normalise as in evaluation.
        ema_decay: Keep the moving average with this factor.
        accumulate: How many steps' gradients make one update: the average moves with the updates.
    """
    graph, *parts = nnx.split(module, nnx.Param, nnx.BatchStat)
    params, stats = parts
    all_params = checkpoint.named(params)
    trained = {name: value for name, value in all_params.items() if trainable(name)}
    rest = {name: value for name, value in all_params.items() if name not in trained} | checkpoint.named(stats)
    tx = optimizer(trained)
    if any(name.startswith("vision.") for name in trained):
        module = nnx.merge(graph, params, stats)
        module.train()
        graph, *parts = nnx.split(module, nnx.Param, nnx.BatchStat)
    shapes = jax.eval_shape(lambda x: x, parts)
    highest = "highest" if module.vision.dtype == jnp.float32 else None

    def init(key: Key[Array, ""]) -> TrainState:
        first = {**trained, **rest} if ema_decay is not None else {}
        own = jax.tree.map(jnp.copy, (trained, rest, first))  # donation must not take the module's arrays
        return TrainState(jnp.zeros((), jnp.int32), own[0], own[1], tx.init(own[0]), own[2], key)

    def loss(trained: dict[str, Array], rest: dict[str, Array], batch: Batch, key: Key[Array, ""]) -> Any:
        arrays = {**trained, **rest}
        model = nnx.merge(graph, *(checkpoint.fill(part, arrays) for part in shapes))
        value, metrics = objective(model, batch, key)
        return value, (metrics, checkpoint.named(nnx.state(model, nnx.BatchStat)))

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(state.key, state.step)
        with jax.default_matmul_precision(highest):
            (value, (metrics, stats)), gradients = jax.value_and_grad(loss, has_aux=True)(
                state.params, state.rest, batch, key
            )
        updates, optimizer = tx.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        if "logit_scale" in params:
            params = {**params, "logit_scale": clip_log_scale(params["logit_scale"])}
        rest = {**state.rest, **stats}
        average = state.average
        if ema_decay is not None:
            weight = jnp.where((state.step + 1) % accumulate == 0, 1 - ema_decay, 0.0)
            average = jax.tree.map(lambda a, x: a + weight * (x - a), average, {**params, **rest})  # exact where equal
        metrics = {"loss": value, "gradient_norm": gradient_norm(gradients), **metrics}
        return TrainState(state.step + 1, params, rest, optimizer, average, state.key), metrics

    return Step(init, update)


def arrays(state: TrainState, *, average: bool = False) -> dict[str, Array]:
    """Every array of the model, as :func:`jaxclip.checkpoint.save` takes them; ``average``: of the moving average."""
    return dict(state.average) if average and state.average else {**state.params, **state.rest}
