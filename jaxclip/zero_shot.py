"""A classifier from text: each row of the head is what a CLIP makes of a class's name (Radford et al. 2021, 3.1)."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxclip.config import check_batch_size
from jaxclip.errors import InputError
from jaxclip.model import Model
from jaxclip.progress import progress


def zero_shot_head(
    model: Model, classnames: Sequence[str], templates: Sequence[str], *, batch_size: int = 256
) -> Float[Array, "classes d"]:
    """W: for each class, the mean over templates of the unit text embeddings, scaled to length one again.

    Agrees with open_clip's ``build_zero_shot_classifier`` (which returns the transpose).

    Args:
        model: A CLIP.
        classnames: One name for each row.
        templates: Sentences with ``{}`` where the name goes.
        batch_size: How many sentences are encoded at once; the last batch is padded, so there is one compilation.

    Raises:
        InputError: ``model`` has no text tower, there is no class or no template, a name is empty, a template has no
            ``{}``, or ``batch_size`` is below 1.
    """
    check_batch_size(batch_size)
    if model.config.text is None:
        raise InputError(f"{model.config.name} is a classifier: it has its own head, and no text tower to make one")
    for what, strings in (("class names", classnames), ("templates", templates)):
        if isinstance(strings, str) or not len(strings):
            raise InputError(f"{what} are {strings!r}: pass a list of at least one")
    for row, name in enumerate(classnames):
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"class name {row} is {name!r}: every class needs a name")
    for template in templates:
        if "{}" not in template:
            raise InputError(f"template {template!r} has no {{}} for the class name")

    tokens = model.tokenize([t.replace("{}", name) for name in classnames for t in templates])
    if model.config.text.causal and model.config.text.pool in ("argmax", "eos"):
        # Padding after the end of text cannot change it: columns that are padding in every row need no work.
        tokens = tokens[:, : 1 + np.flatnonzero(tokens.any(axis=0))[-1]]
    rows = np.repeat(np.arange(len(classnames)), len(templates))
    batch_size = min(batch_size, len(tokens))
    padding = -len(tokens) % batch_size
    tokens = np.pad(tokens, ((0, padding), (0, 0)), mode="edge")
    rows = np.pad(rows, (0, padding), constant_values=len(classnames))

    sums = jnp.zeros((len(classnames), model.config.text.output_dim), jnp.float32)
    with progress("zero-shot head", len(rows) - padding, unit="sentences") as advance:
        for i in range(0, len(tokens), batch_size):
            h = model.encode_text(tokens[i : i + batch_size])
            sums = _add_unit(sums, h, rows[i : i + batch_size])
            advance(min(batch_size, len(rows) - padding - i))
    return _unit(sums)


def _unit(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


@functools.partial(jax.jit, donate_argnums=0)
def _add_unit(sums: Float[Array, "c d"], h: Float[Array, "n d"], rows: Int[np.ndarray, " n"]) -> Float[Array, "c d"]:
    """Adds each unit embedding to its class's row; a row that does not exist is padding, and dropped.

    As a product: a GPU adds to rows in any order, so that two runs would differ in rounding.
    """
    return sums + jnp.matmul(jax.nn.one_hot(rows, len(sums), dtype=sums.dtype).T, _unit(h), precision="highest")
