"""The command line: quick help, one line for each mistake, exit codes, and the whole of `evaluate`."""

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import class_folders, tiny_classifier, tiny_clip

from experiments import effective_robustness, reproduce
from experiments import study as studies
from jaxclip import analyze, checkpoint, cli, datasets
from jaxclip.errors import InputError
from jaxclip.model import Model, load_model

HEAVY = ("jax", "flax", "numpy", "PIL", "grain", "transformers", "tensorflow_datasets", "torch", "matplotlib")


def save(model: Model, path: Path) -> Path:
    checkpoint.save(path, model.config, checkpoint.named(model.params))
    return path


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_classifier(2), tmp_path_factory.mktemp("models") / "classifier")


@pytest.fixture
def animals(imagenet_samples: list[Path], tmp_path: Path) -> Path:
    return class_folders(imagenet_samples, tmp_path / "animals")


def run(*args: object) -> int:
    """The exit code of a command line."""
    try:
        return cli.main([str(arg) for arg in args])
    except SystemExit as stop:  # tyro's way out of its own errors
        assert isinstance(stop.code, int)
        return stop.code


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    """One careless import at the top of a module would make every use of the command wait for seconds."""
    code = (
        "import sys; from jaxclip import cli\n"
        "try: cli.main(['--help'])\n"
        f"finally: print('heavy:', *[m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    )

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        assert done.stderr.strip() == "heavy:"
        for command, function in cli.COMMANDS.items():
            assert command in done.stdout
            assert (function.__doc__ or "").split()[0] in done.stdout, f"{command} has no help"
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.5, "processor time, as this machine may be busy"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture) -> None:
    assert run(command, "--help") == 0
    assert len(capsys.readouterr().out) > 100


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["evalute"], "evaluate"),
        (["evaluate", "--modle", "x", "--data", "y"], "--model"),
        (["evaluate", "--model", "x", "--data", "y", "--dtype", "float16"], "bfloat16"),
        (["evaluate", "--model", "x", "--data", "y", "--batch-size", "many"], "--batch-size"),
    ],
)
def test_wrong_usage_exits_with_2(args: list[str], says: str, capsys: pytest.CaptureFixture) -> None:
    assert run(*args) == 2
    printed = capsys.readouterr()
    assert says in printed.err
    assert not printed.out


def test_python_m_and_exit_code() -> None:
    """`python -m jaxclip` is the same command; a mistake is one line on standard error, without a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "jaxclip", "evaluate", "--model", "/no/such/model", "--data", "/no/such/data"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("jaxclip: error: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    """`jaxclip datasets | head -1` must not end in a traceback."""
    command = f"{sys.executable} -m jaxclip datasets | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_datasets_prepare_says_what_it_needs(capsys: pytest.CaptureFixture) -> None:
    assert run("datasets", "prepare") == 2
    assert "name the data set" in capsys.readouterr().err
    assert run("datasets", "prepare", "objectnet") == 2
    assert "--from" in capsys.readouterr().err


def raising(error: BaseException):
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (InputError("the thing is wrong"), 2, "jaxclip: error: the thing is wrong\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x/y"),
            2,
            "jaxclip: error: /x/y: No space left on device\n",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "jaxclip: error: /x: Permission denied\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(cli.COMMANDS, "models", raising(error))
    assert run("models") == code
    assert capsys.readouterr().err == says


@pytest.mark.parametrize("below", ["", "x"])
def test_an_output_folder_that_is_a_file(
    below: str, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """One line, not a FileExistsError's or NotADirectoryError's traceback."""
    (tmp_path / "file").write_text("mine")
    assert run("interpolate", classifier, classifier, "--out", tmp_path / "file" / below, "--alpha", "0.5") == 2
    printed = capsys.readouterr().err
    assert str(tmp_path / "file") in printed and "a file is in the way" in printed
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_in_a_reports_place_is_refused_before_the_work(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """An analysis takes minutes, a study hours: neither is to end in that there is no place for it."""

    def worked(*args: object, **kwargs: object) -> None:
        raise AssertionError("it worked before it looked")

    (tmp_path / "file").touch()
    for module, name in ((effective_robustness, "run"), (analyze, "analyze_stored"), (studies, "load")):
        monkeypatch.setattr(module, name, worked)
    out = ("--out", tmp_path / "file")
    for command in (("robustness", *out), ("analyze", "--model", classifier, "--data", tmp_path, *out)):
        assert run(*command) == 2
        assert "a file is in the way" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        reproduce.main(tmp_path / "config.py", out[1])
    assert "a file is in the way" in capsys.readouterr().err


@pytest.mark.parametrize("option, value", [("--split", "val"), ("--data-dir", "tfds")])
def test_options_of_labels_are_not_for_captions(
    tmp_path: Path, capsys: pytest.CaptureFixture, option: str, value: str
) -> None:
    """An option that is accepted and ignored misleads."""
    args = ("--config", "clip_captions", "--data", tmp_path / "no.csv", "--out", tmp_path / "out", option, value)
    assert run("train", "clip", *args) == 2
    assert f"{option} is for" in capsys.readouterr().err


def test_training_is_on_the_train_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a known data set, even where a folder is called so: its usual split is the one to test on."""
    (tmp_path / "cifar10" / "train").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "open_source", lambda data, split, data_dir: split)
    for data, split in {"cifar10": "train", "cifar10_1/v4": "train", "./cifar10": None, "cifar10/train": None}.items():
        assert cli._TrainingOptions().source(data) == split, data
    assert cli._TrainingOptions(split="test").source("cifar10") == "test"


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), ValueError("a bug")])
def test_what_the_user_cannot_mend_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug that is printed as one line cannot be reported, nor found."""
    monkeypatch.setitem(cli.COMMANDS, "models", raising(error))
    with pytest.raises(type(error)):
        run("models")


def test_evaluate(classifier: Path, animals: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The command prints what it writes, and what it writes is the accuracy of the checkpoint's own head."""
    out = tmp_path / "result"
    assert run("evaluate", "--model", classifier, "--data", animals, "--workers", "0", "--out", out) == 0
    printed = " ".join(capsys.readouterr().out.split())
    saved = json.loads((out / "evaluation.json").read_text())
    model = load_model(classifier)
    crops = [model.preprocess(Image.open(path)) for path in sorted(animals.glob("*/*"))]
    h = np.asarray(model.encode_image(jnp.stack(crops)))
    assert model.head is not None
    W, b = map(np.asarray, model.head)
    assert saved["top1"]["right"] == int(np.sum((h @ W.T + b).argmax(axis=1) == [0, 0, 0, 1, 1, 1, 1]))
    assert f"{100 * saved['top1']['value']:.2f} %" in printed
    assert "tiny-classifier" in printed
    assert "2 classes" in printed
    assert (out / "per_class.csv").read_text().startswith("label,name,images,top1,top5\nbird,bird,3,")


def test_evaluate_zero_shot_with_files(animals: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Class names and templates come from files; in bfloat16, and again over its own result."""
    model = save(tiny_clip(), tmp_path / "clip")
    (tmp_path / "classes.json").write_text(json.dumps({"bird": "flying bird", "fish": "fish"}))
    text = "\ufeffa photo of a {}.\n\na drawing of a {}.\n"  # as Windows's editors begin a file
    (tmp_path / "templates.txt").write_text(text, encoding="utf-8")
    for dtype in ("float32", "bfloat16"):
        args = ["--classes", tmp_path / "classes.json", "--templates", tmp_path / "templates.txt", "--dtype", dtype]
        assert run("evaluate", "--model", model, "--data", animals, *args, "--out", tmp_path / "result") == 0
        saved = json.loads((tmp_path / "result" / "evaluation.json").read_text())
        assert [c["name"] for c in saved["per_class"]] == ["flying bird", "fish"]
        assert saved["head"] == {"kind": "zero-shot", "classes": 2, "templates": 2}
        assert "zero-shot head, 2 classes" in " ".join(capsys.readouterr().out.split())


def test_bad_pictures_on_the_command_line(classifier: Path, animals: Path, capsys: pytest.CaptureFixture) -> None:
    """By default an error that names the picture; with --skip-bad it is reported."""
    victim = sorted((animals / "fish").iterdir())[1]
    victim.write_bytes(victim.read_bytes()[:3000])
    args = ("evaluate", "--model", classifier, "--data", animals)
    assert run(*args) == 2
    printed = capsys.readouterr()
    assert victim.name in printed.err
    assert "--skip-bad" in printed.err
    assert run(*args, "--skip-bad") == 0
    printed = capsys.readouterr()
    assert "1 picture could not be decoded" in printed.out
    assert victim.name in printed.out


def test_empty_folder(classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "empty").mkdir()
    assert run("evaluate", "--model", classifier, "--data", tmp_path / "empty") == 2
    assert "no pictures" in capsys.readouterr().err


def test_folders_that_are_no_class(classifier: Path, animals: Path, capsys: pytest.CaptureFixture) -> None:
    """Neither of the given classes nor, among WNIDs, of ImageNet's."""
    (animals.parent / "classes.txt").write_text("bird\ndish\n")
    args = ("evaluate", "--model", classifier, "--data", animals)
    assert run(*args, "--classes", animals.parent / "classes.txt") == 2
    assert "'fish' is none of the 2 given classes" in capsys.readouterr().err
    (animals / "bird").rename(animals / "n01514668")
    assert run(*args) == 2
    assert "fish" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("classes.json", '["a", "b"]', "not a JSON object"),
        ("classes.json", '{"a": "b"', "not JSON"),
        ("classes.txt", None, "no file"),
        ("classes.txt", b"\xff\xfe\x00", "not a text file"),
    ],
)
def test_bad_class_files(
    name: str, content: str | bytes | None, says: str, classifier: Path, animals: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert run("evaluate", "--model", classifier, "--data", animals, "--classes", tmp_path / name) == 2
    assert says in capsys.readouterr().err


def test_full_disk(
    classifier: Path, animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    assert run("evaluate", "--model", classifier, "--data", animals, "--out", tmp_path / "result") == 2
    where = tmp_path / "result" / "per_class.csv"
    assert capsys.readouterr().err == f"jaxclip: error: {where}: No space left on device\n"
    assert not list((tmp_path / "result").iterdir())
