"""The facts that ship with the package are those of their sources."""

import ast
import hashlib
import inspect
from importlib import resources

import pytest

import jaxclip
from jaxclip import data


def test_names_and_templates():
    """Class names and templates in open_clip's order and spelling: else heads differ from published ones."""
    open_clip = pytest.importorskip("open_clip")
    assert data.imagenet_classnames() == list(open_clip.IMAGENET_CLASSNAMES)
    templates = data.imagenet_templates()
    assert len(templates) == 80 and all(t.count("{}") == 1 for t in templates)
    for ours, theirs in zip(templates, open_clip.OPENAI_IMAGENET_TEMPLATES, strict=True):
        assert ours.format("tench") == theirs("tench")


def test_wnids_are_those_of_tfds():
    """The class order is tensorflow_datasets' (and so ImageNet's): a shifted order would ruin every accuracy."""
    datasets = pytest.importorskip("tensorflow_datasets")
    labels = resources.files(datasets).joinpath("datasets/imagenet2012/labels.txt").read_text().split()
    assert data.imagenet_wnids() == labels


def test_wnids_and_names_belong_together(imagenet_samples):
    """The pictures' file names carry WordNet id and name: the two columns are not shifted against each other."""
    assert data.imagenet_wnids() == [file.name.split("_")[0] for file in imagenet_samples]
    spelled = [file.stem.split("_", 1)[1].lower().replace("_", " ") for file in imagenet_samples]
    same = sum(a == b.lower() for a, b in zip(spelled, data.imagenet_classnames(), strict=True))
    assert same > 700, f"only {same} of 1,000 names are spelled as in the file names"


def test_merges_are_openai_s():
    """The tokenizer's merges are, byte for byte, the file in open_clip's wheel, which is OpenAI's."""
    open_clip = pytest.importorskip("open_clip")
    theirs = resources.files(open_clip).joinpath("bpe_simple_vocab_16e6.txt.gz").read_bytes()
    ours = data.read_bytes("bpe_simple_vocab_16e6.txt.gz")
    assert hashlib.sha256(ours).hexdigest() == hashlib.sha256(theirs).hexdigest()


def test_type_checkers_see_every_public_name():
    """They do not run ``__getattr__``: without these imports and ``py.typed``, all of jaxclip is ``Any`` to a user."""
    (block,) = [node for node in ast.parse(inspect.getsource(jaxclip)).body if isinstance(node, ast.If)]
    seen = {node.names[0].asname: node.module for node in block.body if isinstance(node, ast.ImportFrom)}
    assert seen == jaxclip._PUBLIC
    for package in ("jaxclip", "checkpoints_conversion"):
        assert resources.files(package).joinpath("py.typed").is_file()


def test_callers_cannot_change_the_data():
    """The lists are fresh: a caller that sorts one does not reorder everyone's classes."""
    for function in (data.imagenet_classnames, data.imagenet_wnids, data.imagenet_templates):
        before = list(function())
        function().reverse()
        assert function() == before
        assert before[0] in ("tench", "n01440764", "a bad photo of a {}.")
