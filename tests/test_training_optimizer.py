"""The optimiser does what its words say: beside PyTorch's own, or a computation by hand."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip.errors import InputError
from jaxclip.training.optimizer import Optimizer, layer_factors, make_optimizer, schedule


def params() -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    shapes = {"head.kernel": (5, 3), "head.bias": (3,), "vision.norm_post.scale": (5,)}
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_ten_updates_are_pytorchs(name: str) -> None:
    """With clipping, warm-up, cosine, and decay of the kernel alone; torch gets the rate of each update."""
    torch = pytest.importorskip("torch")
    cfg = Optimizer(name, learning_rate=0.1, warmup=0.3, weight_decay=0.05, clip_norm=0.5, b2=0.95)
    ours = params()
    tx = make_optimizer(cfg, 10, ours)
    state = tx.init(ours)
    theirs = {n: torch.nn.Parameter(torch.tensor(np.asarray(p))) for n, p in ours.items()}
    groups = [
        {"params": [theirs["head.kernel"]], "weight_decay": 0.05},
        {"params": [theirs["head.bias"], theirs["vision.norm_post.scale"]], "weight_decay": 0.0},
    ]
    reference = (
        torch.optim.AdamW(groups, 0.1, (0.9, 0.95), 1e-6) if name == "adamw" else torch.optim.SGD(groups, 0.1, 0.9)
    )
    rng = np.random.default_rng(1)
    for update in range(10):
        gradients = {n: rng.normal(size=p.shape).astype(np.float32) for n, p in ours.items()}
        updates, state = tx.update(gradients, state, ours)
        ours = optax.apply_updates(ours, updates)
        for n, p in theirs.items():
            p.grad = torch.tensor(gradients[n])
        torch.nn.utils.clip_grad_norm_(theirs.values(), 0.5)
        rate = 0.1 * (update / 3 if update < 3 else 0.5 * (1 + np.cos(np.pi * (update - 3) / 7)))
        for group in reference.param_groups:
            group["lr"] = rate
        reference.step()
    for n, p in theirs.items():
        np.testing.assert_allclose(ours[n], p.detach().numpy(), rtol=2e-4, atol=2e-6, err_msg=n)


def test_schedule_ends() -> None:
    cfg = Optimizer(learning_rate=2.0, warmup=0.1, final=0.25)
    rate = schedule(cfg, 100)
    assert [float(rate(i)) for i in (0, 5, 10, 100)] == pytest.approx([0, 1, 2, 0.5])
    assert float(schedule(dataclasses.replace(cfg, warmup=0.0), 1)(0)) == 2.0, "a run of one update must move"


def test_layer_decay_counts_layers_from_the_head() -> None:
    """BEiT's rule: 3 blocks have 0.5, 0.25, 0.125 from the last to the first, the embeddings 0.0625, the head 1."""
    shapes = {
        "vision.patch_embedding.kernel": (12, 4),
        "vision.positions": (5, 4),
        "vision.transformer.blocks.norm1.scale": (3, 4),
        "vision.transformer.blocks.qkv.kernel": (3, 4, 12),
        "vision.norm_post.scale": (4,),
        "head.kernel": (4, 2),
        "logit_scale": (),
    }
    factors = layer_factors({name: jnp.zeros(shape) for name, shape in shapes.items()}, 0.5)
    found = {name: np.ravel(value).tolist() for name, value in factors.items()}
    assert found == {
        "vision.patch_embedding.kernel": [0.0625],
        "vision.positions": [0.0625],
        "vision.transformer.blocks.norm1.scale": [0.125, 0.25, 0.5],
        "vision.transformer.blocks.qkv.kernel": [0.125, 0.25, 0.5],
        "vision.norm_post.scale": [1.0],
        "head.kernel": [1.0],
        "logit_scale": [1.0],
    }
    stages = layer_factors({f"vision.{n}": jnp.zeros(1) for n in ("conv1.kernel", "stages.0.0.a", "stages.1.0.a")}, 0.5)
    assert [float(x) for x in stages.values()] == [0.125, 0.25, 0.5]


def test_accumulated_batches_are_one_update_of_their_mean() -> None:
    """Two half batches, then the update; nothing moves after the first."""
    cfg = Optimizer("sgd", learning_rate=0.1, warmup=0.0, clip_norm=None)
    start, rng = params(), np.random.default_rng(1)
    first, second = ({n: rng.normal(size=p.shape).astype(np.float32) for n, p in start.items()} for _ in range(2))
    tx = make_optimizer(dataclasses.replace(cfg, accumulate=2), 5, start)
    updates, state = tx.update(first, tx.init(start), start)
    assert all(not np.any(u) for u in updates.values())
    updates, _ = tx.update(second, state, start)
    whole = make_optimizer(cfg, 5, start)
    expected, _ = whole.update(jax.tree.map(lambda a, b: (a + b) / 2, first, second), whole.init(start), start)
    for name in start:
        np.testing.assert_allclose(updates[name], expected[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("layer_decay", 0, "layer_decay is 0"),
        ("name", "AdamW", "name is 'AdamW', not adamw or sgd"),
        ("b1", 7.0, "b1 is 7"),
        ("b2", -1.0, "b2 is -1"),
        ("eps", -3.0, "eps is -3"),
        ("learning_rate", math.inf, "learning_rate is inf"),
        ("weight_decay", math.nan, "weight_decay is nan"),
        ("accumulate", 1.5, "accumulate is 1.5, not an integer"),
    ],
)
def test_bad_values_are_named(field: str, value: object, says: str) -> None:
    """A name that is not known must not become SGD, nor a moment that grows a run that diverges."""
    with pytest.raises(InputError, match=says):
        Optimizer(**{field: value})
