"""Whole runs: fine-tuning from the zero-shot head, from labels, from captions, WiSE-FT; what they write loads."""

import dataclasses
import json
import math
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import VISION, class_folders, tiny_clip

from jaxclip import checkpoint, config, evaluation, load_model, registry
from jaxclip.cli import main
from jaxclip.datasets import open_source
from jaxclip.datasets.source import Example
from jaxclip.errors import InputError
from jaxclip.interpolate import interpolate, interpolate_checkpoints
from jaxclip.training import recipe, runs
from jaxclip.training.augment import Augment
from jaxclip.training.data import Captions
from jaxclip.training.loop import CHECKPOINTS, Schedule, Trained
from jaxclip.training.optimizer import Optimizer
from jaxclip.training.recipe import Recipe
from jaxclip.training.state import arrays as arrays_of

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


def test_a_trained_model_is_called_as_the_study_calls_it(folder: Path, tmp_path: Path, capsys) -> None:
    """The paper's study knows models by name: one that training cannot give would never be in it."""
    names = tmp_path / "names.json"
    names.write_text(json.dumps(NAMES))
    common = ["--data", str(folder / "data"), "--batch-size", "4", "--epochs", "1", "--workers", "0"]
    tune = ["finetune", "--model", str(folder / "clip"), "--classes", str(names), *common]
    tune += ["--out", str(tmp_path / "tuned"), "--name"]
    assert main([*tune, "RN50/openai_ft_in1k"]) == 0, capsys.readouterr().err
    assert checkpoint.read_config(tmp_path / "tuned" / "last").name == "RN50/openai_ft_in1k"
    assert main([*tune, "RN50/cc12m_ft_in1k"]) == 2 and "whose name is another" in capsys.readouterr().err
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from jaxclip.config import ModelConfig, Preprocess, ResNet\nfrom jaxclip.training.recipe import Recipe\n"
        "VISION = ResNet(32, (1,), width=4, block='basic', stem='3x3')\n"
        "MODEL = ModelConfig('a', VISION, Preprocess(32), num_classes=2)\n"
        "RECIPE = Recipe(1, 4, dtype='float32')\n"
    )
    out = tmp_path / "trained"
    train = ["train", "supervised", "--config", str(recipe), *common, "--out", str(out), "--name", "mine"]
    assert main(train) == 0, capsys.readouterr().err
    assert checkpoint.read_config(out / "last").name == "mine"


def test_head_alone_leaves_the_encoder(folder: Path) -> None:
    """And lp-ft moves both, from the probe's head. Rounded in the moving average, what is frozen would drift."""
    source = open_source(folder / "data")
    common = {"classes": NAMES, "templates": ["{}"], "workers": 0}
    averaged = dataclasses.replace(RECIPE, optimizer=Optimizer(learning_rate=1e-3, ema_decay=0.9))
    runs.finetune(folder / "clip", source, folder / "lp", averaged, mode="lp-ft", **common)
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
    """The command, on a recipe of one's own; its checkpoint encodes images and text, and the scale stays within 100.

    Validation data that comes too late to choose a best must not be left out without a word.
    """
    rows = "".join(f"{p.resolve()},a {p.stem.split('_', 1)[1]}\n" for p in imagenet_samples[:6])
    (tmp_path / "data.csv").write_text("path,caption\n" + rows)
    (tmp_path / "toy.py").write_text(
        "from jaxclip.config import *\nfrom jaxclip.training.recipe import Recipe\n"
        "MODEL = ModelConfig('toy', ViT(32, 16, 32, 1, 2, 64, 16), Preprocess(32), Text(77, 49408, 16, 1, 2, 32, 16))\n"
        "RECIPE = Recipe(2, 3, dtype='bfloat16', remat=True, log=1)\n"
    )
    command = ["train", "clip", "--config", str(tmp_path / "toy.py"), "--data", str(tmp_path / "data.csv")]
    command += ["--images", "/", "--out", str(tmp_path / "out"), "--workers", "0"]
    assert main(command) == 0, capsys.readouterr().err
    model = load_model(tmp_path / "out" / "last")
    assert model.encode_text(model.tokenize("a hen")).shape == (1, 16)
    assert model.params["vision"]["norm_post"]["scale"].get_value().dtype == np.float32, "master weights are float32"
    lines = [json.loads(x) for x in (tmp_path / "out" / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == [1, 2, 3, 4] and all(0 < x["logit_scale"] <= 100.001 for x in lines)
    assert main([*command, "--validation", str(class_folders(imagenet_samples, tmp_path / "labelled"))]) == 2
    assert "ended without validation data" in capsys.readouterr().err and not (tmp_path / "out" / "best").exists()


# --- what a run begins with and refuses ------------------------------------------------------------------------------


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> list[Schedule]:
    """The schedules of runs whose loop takes no step, but leaves a checkpoint's folder and a snapshot."""
    schedules = []

    def fit(step, batches, out, schedule, *, seed, score, keep, tensorboard) -> Trained:
        found = arrays_of(step.init(jax.random.key(seed)))
        (out / CHECKPOINTS / str(schedule.steps)).mkdir(parents=True, exist_ok=True)
        if keep is not None:
            keep(schedule.steps, found)
        schedules.append(schedule)
        return Trained(found, None, None)

    monkeypatch.setattr(runs, "fit", fit)
    return schedules


@pytest.fixture
def captions(folder: Path) -> Captions:
    source = open_source(folder / "data")
    return Captions(source, tuple(f"picture {i}" for i in range(len(source))))


CLASSIFIER = config.ModelConfig("toy", config.ViT(32, 16, 32, 1, 2, 64), config.Preprocess(32), num_classes=2)
TUNE = {"classes": NAMES, "templates": ["{}"], "workers": 0}


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"vision": dataclasses.replace(VISION, layers=1)}, r"vision\.layers is 2, not 1$"),
        ({"preprocess": config.Preprocess(32, resize="squash")}, r"preprocess\.resize is 'shortest', not 'squash'$"),
    ],
)
def test_a_start_of_another_architecture_is_refused(
    part: dict, says: str, folder: Path, captions: Captions, untrained: list, tmp_path: Path
) -> None:
    """Or a whole run ends with a checkpoint that does not load."""
    cfg = dataclasses.replace(tiny_clip().config, **part)
    with pytest.raises(InputError, match=says):
        runs.from_captions(cfg, captions, tmp_path / "out", RECIPE, start=folder / "clip", workers=0)
    assert not (tmp_path / "out").exists(), "what is refused leaves a folder"


def test_the_logit_bias_of_a_start(folder: Path, captions: Captions, untrained: list, tmp_path: Path) -> None:
    """The sigmoid loss gives a CLIP that has none the bias of a fresh model; one that a start has stays. All load."""
    cfg, sigmoid = tiny_clip().config, dataclasses.replace(RECIPE, loss="sigmoid")
    biased = runs.from_captions(cfg, captions, tmp_path / "sigmoid", sigmoid, start=folder / "clip", workers=0)
    before, after = arrays(folder / "clip"), arrays(biased)
    assert after.pop("logit_bias") == -10
    assert before.keys() == after.keys() and all(np.array_equal(a, after[n]) for n, a in before.items())
    kept = runs.from_captions(cfg, captions, tmp_path / "contrastive", RECIPE, start=biased, workers=0)
    assert arrays(kept)["logit_bias"] == -10


def test_ends_with_and_without_a_logit_bias_have_no_line(folder: Path, tmp_path: Path) -> None:
    """Neither a KeyError nor a checkpoint without the bias that its configuration asks for."""
    cfg = dataclasses.replace(tiny_clip().config, logit_bias=True)
    model = checkpoint.named(tiny_clip().params) | {"logit_bias": np.float32(-10)}
    checkpoint.save(tmp_path / "biased", cfg, model)
    for a, b in ((tmp_path / "biased", folder / "clip"), (folder / "clip", tmp_path / "biased")):
        with pytest.raises(InputError, match="their logit_bias is not the same"):
            interpolate_checkpoints(a, b, [0.5], tmp_path / "out")


def test_ends_of_other_pixels_have_no_line(folder: Path, tmp_path: Path) -> None:
    """A point between two models that are shown other pixels would be evaluated on one end's alone."""
    cfg = tiny_clip().config
    other = dataclasses.replace(cfg, preprocess=dataclasses.replace(cfg.preprocess, mean=(0.1, 0.2, 0.3)))
    checkpoint.save(tmp_path / "other", other, checkpoint.named(tiny_clip().params))
    with pytest.raises(InputError, match="their preprocess is not the same"):
        interpolate_checkpoints(folder / "clip", tmp_path / "other", [0.5], tmp_path / "out")


def test_no_point_of_a_line_is_written_where_one_is_there(folder: Path, tmp_path: Path) -> None:
    """Half of a line and an error would have to be cleared away by hand."""
    interpolate_checkpoints(folder / "clip", folder / "clip", [0.5], tmp_path)
    with pytest.raises(InputError, match=r"alpha_0\.50 exists already: .* --overwrite"):
        interpolate_checkpoints(folder / "clip", folder / "clip", [0.75, 0.5], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["alpha_0.50"]
    (tmp_path / "alpha_0.75").mkdir()
    (tmp_path / "alpha_0.75" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"alpha_0\.75 is no checkpoint"):
        interpolate_checkpoints(folder / "clip", folder / "clip", [0.25, 0.75], tmp_path, overwrite=True)
    assert not (tmp_path / "alpha_0.25").exists()


def test_validation_of_other_classes_is_refused_at_once(
    folder: Path, imagenet_samples: list[Path], untrained: list, tmp_path: Path
) -> None:
    """{cat, dog} must not be scored as {bird, fish}; a third class must not end the run after its first epoch."""
    source = open_source(folder / "data")
    for other, says in ((("cat", "dog"), "class 0 is 'cat' there"), (("bird", "fish", "newt"), "3 classes")):
        validation = OwnClasses(tuple(imagenet_samples[: len(other)]), called=other)
        with pytest.raises(InputError, match=says):
            runs.supervised(CLASSIFIER, source, tmp_path / "out", RECIPE, validation=validation, workers=0)
        with pytest.raises(InputError):
            runs.finetune(folder / "clip", source, tmp_path / "out", RECIPE, validation=validation, **TUNE)
    assert not untrained and not (tmp_path / "out").exists()


def test_accumulated_steps_are_whole_updates(
    folder: Path, captions: Captions, untrained: list[Schedule], tmp_path: Path
) -> None:
    """Seven pictures twice, by threes: five steps are two updates of two; fewer steps than one update train nothing."""

    def accumulating(n: int) -> Recipe:
        return dataclasses.replace(RECIPE, optimizer=Optimizer(accumulate=n))

    assert [accumulating(n).length(7) for n in (1, 2, 5)] == [5, 4, 5]
    cfg, common = tiny_clip().config, {"start": folder / "clip", "workers": 0}
    runs.from_captions(cfg, captions, tmp_path / "two", accumulating(2), **common)
    assert [schedule.steps for schedule in untrained] == [4]
    with pytest.raises(InputError, match="accumulate is 6, and the run has 5 steps"):
        runs.from_captions(cfg, captions, tmp_path / "six", accumulating(6), **common)


def damaged(*_: object, **__: object) -> Trained:
    raise InputError("a picture cannot be trained on")


def test_a_run_that_never_began_may_be_mended(folder: Path, untrained: list, tmp_path: Path, monkeypatch) -> None:
    """After a picture that is damaged, the mended command; its zero-shot head is of its own templates."""
    source, out = open_source(folder / "data"), tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(InputError, match="cannot be trained on"):
        patch.setattr(runs, "fit", damaged)
        runs.finetune(folder / "clip", source, out, dataclasses.replace(RECIPE, batch_size=2), **TUNE)
    first = arrays(out / "zero_shot")["head.kernel"]
    mended = TUNE | {"templates": ["a drawing of {}"]}
    runs.finetune(folder / "clip", source, out, RECIPE, **mended)
    assert not np.allclose(arrays(out / "zero_shot")["head.kernel"], first, rtol=1e-3)
    assert json.loads((out / "recipe.json").read_text())["recipe"]["batch_size"] == 3
    for key, other in (("recipe", {}), ("templates", TUNE)):
        changed = dataclasses.replace(RECIPE, seed=1) if key == "recipe" else RECIPE
        with pytest.raises(InputError, match=f"whose {key} is another"):
            runs.finetune(folder / "clip", source, out, changed, **(mended | other))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, r"recipe\.json is missing"),
        ('{"clip": ', r"recipe\.json is damaged"),
        ("[]", r"recipe\.json is no JSON object"),
    ],
)
def test_a_begun_run_needs_its_record(content: str | None, says: str, tmp_path: Path) -> None:
    """Or it goes on with whatever recipe and data are given now."""
    recipe.record(tmp_path, {"recipe": RECIPE}, begun=False)
    recipe.record(tmp_path, {"recipe": RECIPE}, begun=True)
    (tmp_path / "recipe.json").unlink()
    if content is not None:
        (tmp_path / "recipe.json").write_text(content)
    with pytest.raises(InputError, match=says):
        recipe.record(tmp_path, {"recipe": RECIPE}, begun=True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"workers": -1}, "workers is -1"),
        ({"tensorboard": True}, "tensorboardX is missing"),
        ({"batch_size": 8}, "7 pictures, fewer than a batch of 8"),
        ({"devices": 2}, "batch size 3 does not divide by the 2 devices"),
        ({"there": "last"}, "last is no checkpoint"),
        ({"there": "best"}, "best is no checkpoint"),
        ({"there": "zero_shot"}, "zero_shot is no checkpoint"),
        ({"there": "probe"}, "probe is no checkpoint"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_what_cannot_end_well_is_refused_before_it_begins(
    change: dict, says: str, folder: Path, captions: Captions, untrained: list, tmp_path: Path, monkeypatch
) -> None:
    """Not after hours of training, and nothing is left behind."""
    recipe = dataclasses.replace(RECIPE, batch_size=change.get("batch_size", 3))
    common = {"workers": change.get("workers", 0), "tensorboard": change.get("tensorboard", False)}
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setattr(runs.jax, "device_count", lambda: change.get("devices", 1))
    before = set()
    if "there" in change:
        notes = tmp_path / "out" / change["there"] / "notes.txt"
        notes.parent.mkdir(parents=True)
        notes.write_text("mine")
        before = {notes.parent, notes}
    source, out, cfg = open_source(folder / "data"), tmp_path / "out", tiny_clip().config
    for start in (
        lambda: runs.finetune(folder / "clip", source, out, recipe, **(TUNE | common)),
        lambda: runs.supervised(CLASSIFIER, source, out, recipe, **common),
        lambda: runs.from_captions(cfg, captions, out, recipe, start=folder / "clip", **common),
    ):
        with pytest.raises(InputError, match=says):
            start()
    assert not untrained and set(out.rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"vocab_size": 49407}, r"text\.vocab_size is 49407, and the tokenizer has 49408 ids"),
        ({"context_length": 1}, "context_length is 1"),
    ],
)
def test_a_text_tower_reads_every_token(
    change: dict, says: str, captions: Captions, untrained: list, tmp_path: Path
) -> None:
    """The last id, of which each text has one, would have no embedding, and the loss be NaN."""
    cfg = tiny_clip().config
    cfg = dataclasses.replace(cfg, text=dataclasses.replace(cfg.text, **change))
    with pytest.raises(InputError, match=says):
        runs.from_captions(cfg, captions, tmp_path / "out", RECIPE, workers=0)
    assert not (tmp_path / "out").exists()


def test_edited_captions_are_another_run(folder: Path, captions: Captions, untrained: list, tmp_path: Path) -> None:
    """Or a run goes on, in its middle, with other texts."""
    common = {"start": folder / "clip", "workers": 0}
    runs.from_captions(tiny_clip().config, captions, tmp_path / "out", RECIPE, **common)
    edited = dataclasses.replace(captions, texts=("another", *captions.texts[1:]))
    with pytest.raises(InputError, match="whose captions is another"):
        runs.from_captions(tiny_clip().config, edited, tmp_path / "out", RECIPE, **common)


def test_both_phases_keep_their_snapshots(folder: Path, untrained: list, tmp_path: Path) -> None:
    """lp-ft's phases count steps from 1 each, and their models need names of their own too."""
    recipe = dataclasses.replace(RECIPE, snapshots=True)
    runs.finetune(folder / "clip", open_source(folder / "data"), tmp_path, recipe, mode="lp-ft", probe_epochs=2, **TUNE)
    found = sorted(tmp_path.glob("snapshots*/step_000005"))
    assert [path.parent.name for path in found] == ["snapshots-full", "snapshots-head"]
    assert len({checkpoint.read_config(path).name for path in found}) == 2


@pytest.mark.parametrize("epochs", [-1.0, 0.0, math.inf])
def test_the_probe_takes_some_epochs(epochs: float, folder: Path, untrained: list, tmp_path: Path) -> None:
    source = open_source(folder / "data")
    with pytest.raises(InputError, match="probe_epochs is"):
        runs.finetune(folder / "clip", source, tmp_path / "out", RECIPE, mode="lp-ft", probe_epochs=epochs, **TUNE)


@pytest.mark.parametrize(
    "change",
    [{"label_smoothing": 0.3}, {"augment": Augment(mixup=0.5)}, {"augment": Augment(cutmix=0.5)}],
    ids=["label_smoothing", "mixup", "cutmix"],
)
def test_captions_refuse_what_is_for_classes(
    change: dict, folder: Path, captions: Captions, untrained: list, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Rather than leave it out without a word."""
    recipe, common = dataclasses.replace(RECIPE, **change), {"start": folder / "clip", "workers": 0}
    with pytest.raises(InputError, match=f"{request.node.callspec.id} is 0.[35], and captions have no classes"):
        runs.from_captions(tiny_clip().config, captions, tmp_path / "out", recipe, **common)


def test_classes_refuse_what_is_for_captions_and_modes_what_is_for_another(
    folder: Path, untrained: list, tmp_path: Path
) -> None:
    """Rather than leave it out without a word."""
    source, sigmoid = open_source(folder / "data"), dataclasses.replace(RECIPE, loss="sigmoid")
    with pytest.raises(InputError, match="loss sigmoid is of captions"):
        runs.supervised(CLASSIFIER, source, tmp_path / "out", sigmoid, workers=0)
    with pytest.raises(InputError, match="loss sigmoid is of captions"):
        runs.finetune(folder / "clip", source, tmp_path / "out", sigmoid, **TUNE)
    for mode in ("full", "head"):
        with pytest.raises(InputError, match=f"probe_epochs is 2.0, and mode {mode} has no probe"):
            runs.finetune(folder / "clip", source, tmp_path / "out", RECIPE, mode=mode, probe_epochs=2.0, **TUNE)
    assert not untrained and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("loss", "siglip", "loss is 'siglip', not contrastive or sigmoid"),
        ("dtype", "float8", "dtype is 'float8', not float32 or bfloat16"),
        ("epochs", math.inf, "no infinity"),
        ("save", math.inf, "no infinity"),
        ("seed", -1, "seed is -1, not from 0"),
        ("seed", 2**63, r"seed is 9223372036854775808, not from 0 to below 2\*\*63"),
        ("seed", 1.5, "seed is 1.5, not an integer"),
        ("batch_size", 8.0, "batch_size is 8.0, not an integer"),
        ("log", True, "log is True, not an integer"),
    ],
)
def test_bad_recipes_are_named(field: str, value: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        dataclasses.replace(RECIPE, **{field: value})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("RECIPE = = 1", r"does not run: SyntaxError: .*bad\.py, line 1"),
        ("from jaxclip.training.optimizer import Optimizer\nOptimizer(lr=3)", "does not run: TypeError: .*'lr'"),
        ("import no_such_module", "does not run: ModuleNotFoundError: .*no_such_module"),
        ("from jaxclip.training.optimizer import Optimizer\nOptimizer('SGD')", "^optimizer: name is 'SGD'"),
    ],
)
def test_a_configuration_that_does_not_run_is_named(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(content)
    with pytest.raises(InputError, match=says):
        recipe.read(str(tmp_path / "bad.py"))
    with pytest.raises(InputError, match="there is no configuration 'nowhere'") as error:
        recipe.read("nowhere")
    named = re.search("which has (.*);", str(error.value))
    assert named is not None
    for name in named[1].split(", "):  # a study's configuration, named here, would be refused next
        recipe.read(name)


@dataclasses.dataclass(frozen=True)
class OwnClasses:
    """Real pictures, a class each."""

    paths: tuple[Path, ...]
    name: str = "samples"
    called: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        return self.called or tuple(p.stem for p in self.paths)

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
        ("vit_l_14_supervised", "vit_l_14"),
        ("clip_captions", "RN50"),
    ],
)
def test_a_recipe_trains_the_published_architecture(name: str, architecture: str) -> None:
    """What is trained from scratch is compared with published weights: the tower must be the same but for its head."""
    _, model = recipe.read(name)
    assert model is not None
    published = registry.model_config(architecture)
    assert model.vision == published.vision and model.text == published.text


@pytest.mark.parametrize("name", ["RN50/imagenet_captions", "vit_l_14/imagenet1k"])
def test_what_nobody_publishes_has_a_recipe(name: str) -> None:
    """The registry names it, and the model has the name by which the paper's study knows it."""
    entry = registry.lookup(name)
    assert entry.source is None
    config = re.search(r"`jaxclip train \w+ --config (\w+)`", entry.note)
    assert config is not None, entry.note
    _, model = recipe.read(config[1])
    assert model is not None and model.name == name
