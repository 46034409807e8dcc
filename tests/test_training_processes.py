"""One job of two real processes on loopback trains what one process trains, and leaves the same folder."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jobs import ROOT, run_job
from tiny import class_folders

from jaxclip import checkpoint

pytestmark = pytest.mark.slow

CONFIG = """
from jaxclip.config import ModelConfig, Preprocess, ResNet
from jaxclip.training.augment import Augment
from jaxclip.training.optimizer import Optimizer
from jaxclip.training.recipe import Recipe

MODEL = ModelConfig("toy", ResNet(32, (1, 1, 1, 1), 8), Preprocess(32), num_classes=2)
RECIPE = Recipe(4, 4, Optimizer("sgd", learning_rate=1e-2, warmup=0.0), Augment(), dtype="float32", log=1)
"""


def test_two_processes_are_one(imagenet_samples: list[Path], tmp_path: Path) -> None:
    """Batch norm and the loss are over the global batch, whose pictures, crops and flips are the same.

    What else could differ: both processes write, one does not wait for the other, a score is of half of the data.
    """
    class_folders(imagenet_samples, tmp_path / "data")
    (tmp_path / "toy.py").write_text(CONFIG)
    args = ["-m", "jaxclip", "train", "supervised", "--config", tmp_path / "toy.py", "--data", tmp_path / "data"]
    args += ["--validation", tmp_path / "data", "--workers", "0"]
    command = [sys.executable, *map(str, [*args, "--out", tmp_path / "one"])]
    one = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert one.returncode == 0, one.stderr
    for done in run_job(2, [*map(str, args), "--out", str(tmp_path / "two"), "--distributed"]):
        assert done.returncode == 0, done.stderr
    for name in ("last", "best"):
        single, double = (checkpoint.named(checkpoint.restore(tmp_path / n / name)[1]) for n in ("one", "two"))
        for leaf, a in single.items():
            np.testing.assert_allclose(double[leaf], a, rtol=1e-3, atol=1e-5, err_msg=f"{name} {leaf}")
    a, b = ((tmp_path / name / "run" / "metrics.jsonl").read_text().splitlines() for name in ("one", "two"))
    assert len(a) == len(b), "more than one process writes metrics, or none"
    assert {p.name for p in (tmp_path / "one").iterdir()} == {p.name for p in (tmp_path / "two").iterdir()}
