"""The head from text, beside its definition and beside open_clip."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TEXT, cache_size, tiny_classifier, tiny_clip, unit

from jaxclip import zero_shot
from jaxclip.errors import InputError
from jaxclip.model import Model, load_model
from jaxclip.zero_shot import zero_shot_head

NAMES = ("tench", "great white shark", "cock", "kite (bird of prey)", "a {curly} name")
TEMPLATES = ("a photo of a {}.", "itap of the {}.", "{}, drawn by a child", "a bad photo of a {} and nothing else.")


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_clip()


def by_definition(model: Model, names: tuple[str, ...], templates: tuple[str, ...]) -> np.ndarray:
    """The mean of the unit text embeddings over the templates, unit-normalised again; in float64."""
    rows = []
    for name in names:
        sentences = [template.replace("{}", name) for template in templates]
        rows.append(unit(np.asarray(model.encode_text(jnp.asarray(model.tokenize(sentences))))).mean(axis=0))
    return unit(np.stack(rows))


@pytest.mark.parametrize("batch_size", [1, 3, 20, 1000])
def test_head_is_its_definition(model: Model, batch_size: int) -> None:
    """Batches end within a class: a sentence put to the wrong row, or padding that counts, would show."""
    W = zero_shot_head(model, NAMES, TEMPLATES, batch_size=batch_size)
    assert W.shape == (5, 32)
    assert W.dtype == np.float32
    expected = by_definition(model, NAMES, TEMPLATES)
    assert np.ptp(expected, axis=0).max() > 0.01, "all rows are the same: this model cannot tell them apart"
    np.testing.assert_allclose(W, expected, atol=2e-6)


@pytest.mark.parametrize(
    "change", [{"causal": False}, {"pool": "last"}, {"pool": "eos"}], ids=["not-causal", "last", "eos"]
)
def test_padding_is_cut_only_where_it_says_nothing(change: dict) -> None:
    """Without a causal mask, or pooled at the last token, padding is part of what the model reads."""
    model = tiny_clip(dataclasses.replace(TEXT, **change))
    W = zero_shot_head(model, NAMES, TEMPLATES)
    np.testing.assert_allclose(W, by_definition(model, NAMES, TEMPLATES), atol=2e-6)


def test_a_head_is_float32_where_jax_has_64_bits(model: Model) -> None:
    """Else the head, and all logits from it, are float64 there, which nothing else of a model is."""
    with jax.enable_x64(True):
        W = zero_shot_head(model, ["cat", "dog"], ["a {}."])
    assert W.dtype == jnp.float32
    np.testing.assert_allclose(W, zero_shot_head(model, ["cat", "dog"], ["a {}."]), rtol=1e-6, atol=1e-7)


def test_one_compilation() -> None:
    """The last batch is padded; each further shape would compile the text tower again."""
    model = tiny_clip()
    before = cache_size(model._encode_text), cache_size(zero_shot._add_unit)
    zero_shot_head(model, NAMES, TEMPLATES, batch_size=6)
    assert (cache_size(model._encode_text), cache_size(zero_shot._add_unit)) == (before[0] + 1, before[1] + 1)


@pytest.mark.parametrize(
    ("names", "templates", "says"),
    [
        ((), TEMPLATES, "class names"),
        (NAMES, (), "templates"),
        ("cat", TEMPLATES, "class names are 'cat'"),
        (("cat", " "), TEMPLATES, "class name 1"),
        (NAMES, ("a photo of a {}.", "a photo."), r"'a photo\.' has no {}"),
    ],
)
def test_bad_input_is_named(model: Model, names, templates, says: str) -> None:
    with pytest.raises(InputError, match=says):
        zero_shot_head(model, names, templates)
    with pytest.raises(InputError, match="batch size is 0"):
        zero_shot_head(model, NAMES, TEMPLATES, batch_size=0)


def test_a_classifier_has_no_text_tower() -> None:
    with pytest.raises(InputError, match="is a classifier"):
        zero_shot_head(tiny_classifier(3), NAMES, TEMPLATES)


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_head_is_open_clips(quick_gelu: bool, tmp_path: Path) -> None:
    """A random open_clip model, converted: its own ``build_zero_shot_classifier`` gives the same W, transposed."""
    torch = pytest.importorskip("torch", reason="the oracle needs the extra [parity]")
    open_clip = pytest.importorskip("open_clip", reason="the oracle needs the extra [parity]")
    from checkpoints_conversion.convert import convert

    architecture = {
        "embed_dim": 32,
        "quick_gelu": quick_gelu,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
    }
    torch.manual_seed(0)
    theirs = open_clip.CLIP(**architecture).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    (tmp_path / "config.json").write_text(json.dumps(architecture))
    convert(tmp_path / "weights.pt", str(tmp_path / "config.json"), tmp_path / "converted")
    W = zero_shot_head(load_model(tmp_path / "converted"), NAMES, TEMPLATES)
    tokenizer = open_clip.SimpleTokenizer(context_length=77)
    expected = open_clip.build_zero_shot_classifier(theirs, tokenizer, NAMES, TEMPLATES).T
    np.testing.assert_allclose(W, expected.numpy(), atol=2e-6)
