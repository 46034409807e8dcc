"""Whole runs: fine-tuning from the zero-shot head, from labels, from captions, WiSE-FT; what they write loads."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from tiny import class_folders, tiny_clip

from jaxclip import checkpoint, config, evaluation, load_model, registry
from jaxclip.cli import main
from jaxclip.datasets import open_source
from jaxclip.datasets.source import Example
from jaxclip.errors import InputError
from jaxclip.interpolate import interpolate
from jaxclip.training import recipe, runs
from jaxclip.training.augment import Augment
from jaxclip.training.optimizer import Optimizer
from jaxclip.training.recipe import Recipe

RECIPE = Recipe(2, 3, Optimizer(learning_rate=1e-3), Augment(), dtype="float32", log=1)
NAMES = {"bird": "a hen", "fish": "a tench"}


@pytest.fixture(scope="module")
def folder(imagenet_samples: list[Path], tmp_path_factory) -> Path:
    """7 pictures, and a tiny CLIP's checkpoint beside."""
    root = tmp_path_factory.mktemp("finetune")
    class_folders(imagenet_samples, root / "data")
    model = tiny_clip()
    checkpoint.save(root / "clip", model.config, checkpoint.named(model.params))
    return root


def arrays(path: Path) -> dict[str, np.ndarray]:
    return {name: np.asarray(a) for name, a in checkpoint.named(checkpoint.restore(path)[1]).items()}


def test_finetune_begins_with_the_zero_shot_head_and_interpolates(folder: Path, capsys) -> None:
    """zero_shot chooses as the CLIP does; last has moved, in the encoder too; alpha 0, 1 and 0.5 are what they say."""
    source, out = open_source(folder / "data"), folder / "full"
    templates = ["a photo of {}."]
    last = runs.finetune(
        folder / "clip", source, out, RECIPE, classes=NAMES, templates=templates, validation=source, workers=0
    )
    before = evaluation.evaluate(load_model(folder / "clip"), source, classes=NAMES, templates=templates)
    after = evaluation.evaluate(load_model(out / "zero_shot"), source, classes=NAMES)
    assert [c.top1 for c in before.per_class] == [c.top1 for c in after.per_class]
    a, b = arrays(out / "zero_shot"), arrays(last)
    assert not b["head.bias"].any(), "a bias would tell lengths of representations apart"
    still = [name for name in a if name != "head.bias" and np.array_equal(a[name], b[name])]
    assert not still, f"end to end, but {still} did not move"
    assert load_model(out / "best").config.num_classes == 2

    command = ["interpolate", str(out / "zero_shot"), str(last), "--out", str(folder / "wise"), "--alpha"]
    assert main([*command, "0", "0.5", "1"]) == 0, capsys.readouterr().err
    for alpha, expected in ((0.0, a), (1.0, b), (0.5, {n: (a[n].astype(float) + b[n]) / 2 for n in a})):
        for name, value in arrays(folder / "wise" / f"alpha_{alpha:.2f}").items():
            np.testing.assert_allclose(value, expected[name], rtol=0 if alpha != 0.5 else 1e-6, atol=0, err_msg=name)
    assert main([*command, "2"]) == 2 and "alpha is 2" in capsys.readouterr().err
    with pytest.raises(InputError, match="another"):
        runs.finetune(folder / "clip", source, out, dataclasses.replace(RECIPE, epochs=9), classes=NAMES)


def test_head_alone_leaves_the_encoder(folder: Path) -> None:
    """And lp-ft moves both, from the probe's head."""
    source = open_source(folder / "data")
    common = {"classes": NAMES, "templates": ["{}"], "workers": 0}
    runs.finetune(folder / "clip", source, folder / "lp", RECIPE, mode="lp-ft", **common)
    start, probe, last = (arrays(folder / "lp" / name) for name in ("zero_shot", "probe", "last"))
    moved = {name for name in start if not np.array_equal(start[name], probe[name])}
    assert moved == {"head.kernel"}, "the probe trains something else than the head"
    assert {n for n in start if not np.array_equal(probe[n], last[n])} == set(start) - {"head.bias"}


def test_interpolation_needs_one_architecture(folder: Path, capsys) -> None:
    a = {"x": np.float32([1e8, 3])}
    assert np.array_equal(interpolate(a, {"x": np.float32([1, 5])}, 0.0)["x"], a["x"])
    if (folder / "full" / "last").exists():
        code = main(["interpolate", str(folder / "clip"), str(folder / "full" / "last"), "--out", str(folder / "no")])
        assert code == 2 and "zero_shot" in capsys.readouterr().err


def test_train_clip_from_a_csv(imagenet_samples: list[Path], tmp_path: Path, capsys) -> None:
    """The command, on a recipe of one's own; its checkpoint encodes images and text, and the scale stays within 100."""
    rows = "".join(f"{p.resolve()},a {p.stem.split('_', 1)[1]}\n" for p in imagenet_samples[:6])
    (tmp_path / "data.csv").write_text("path,caption\n" + rows)
    (tmp_path / "toy.py").write_text(
        "from jaxclip.config import *\nfrom jaxclip.training.recipe import Recipe\n"
        "MODEL = ModelConfig('toy', ViT(32, 16, 32, 1, 2, 64, 16), Preprocess(32), Text(77, 49408, 16, 1, 2, 32, 16))\n"
        "RECIPE = Recipe(2, 3, dtype='bfloat16', remat=True, log=1)\n"
    )
    command = ["train", "clip", "--config", str(tmp_path / "toy.py"), "--data", str(tmp_path / "data.csv")]
    assert main([*command, "--images", "/", "--out", str(tmp_path / "out"), "--workers", "0"]) == 0, (
        capsys.readouterr().err
    )
    model = load_model(tmp_path / "out" / "last")
    assert model.encode_text(model.tokenize("a hen")).shape == (1, 16)
    assert model.params["vision"]["norm_post"]["scale"].get_value().dtype == np.float32, "master weights are float32"
    lines = [json.loads(x) for x in (tmp_path / "out" / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == [1, 2, 3, 4] and all(0 < x["logit_scale"] <= 100.001 for x in lines)


@dataclasses.dataclass(frozen=True)
class OwnClasses:
    """The first 64 real pictures, a class each."""

    paths: tuple[Path, ...]
    name: str = "samples"

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(p.stem for p in self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        return Example(self.paths[index].name, self.paths[index].read_bytes(), index)

    def fingerprint(self) -> str:
        return "64"


@pytest.mark.slow
def test_overfits_64_real_pictures(imagenet_samples: list[Path], tmp_path: Path) -> None:
    """64 pictures of 64 classes, without augmentation: what is written must know every one of them."""
    source = OwnClasses(tuple(imagenet_samples[:64]))
    cfg = config.ModelConfig(
        "small",
        config.ViT(64, 16, 96, 2, 3, 192, norm_eps=1e-6, patch_bias=True, pre_norm=False),
        config.Preprocess(64),
        num_classes=64,
    )
    recipe = Recipe(
        60, 64, Optimizer(learning_rate=2e-3, weight_decay=0.0), Augment(None, flip=False), dtype="float32", save=60
    )
    last = runs.supervised(cfg, source, tmp_path / "out", recipe, workers=0)
    result = evaluation.evaluate(load_model(last), source)
    assert result.top1.right == 64, f"{result.top1.right} of 64 are right"


@pytest.mark.parametrize(
    "name, architecture",
    [
        ("resnet50_supervised", "resnet50"),
        ("resnet101_supervised", "resnet101"),
        ("vit_b_16_supervised", "vit_b_16"),
        ("vit_b_32_supervised", "vit_b_32"),
        ("clip_captions", "RN50"),
    ],
)
def test_a_recipe_trains_the_published_architecture(name: str, architecture: str) -> None:
    """What is trained from scratch is compared with published weights: the tower must be the same but for its head."""
    _, model = recipe.read(name)
    assert model is not None
    published = registry.model_config(architecture)
    assert model.vision == published.vision and model.text == published.text
