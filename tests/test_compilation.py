"""Programs are compiled once: within a run, and over runs of the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import class_folders, tiny_classifier

from jaxclip.datasets import open_source
from jaxclip.embedding import embed
from jaxclip.evaluation import evaluate


@pytest.fixture
def compiled() -> list[str]:
    """Names the events of compilation as they come."""
    events: list[str] = []

    def listen(event: str, seconds: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return events


def test_no_program_is_compiled_anew_within_a_run(
    imagenet_samples: list[Path], tmp_path: Path, compiled: list[str]
) -> None:
    """A last batch, or a last shard, of another shape would compile the encoder again: seconds for each model."""
    source = open_source(class_folders(imagenet_samples, tmp_path / "animals"))  # 7 pictures
    model = tiny_classifier(2)
    embed(model, source, tmp_path / "a", batch_size=4, shard_rows=6, workers=0)
    assert len(compiled) > 0, "the listener hears nothing"
    assert model._encode_image._cache_size() == 1
    compiled.clear()
    embed(model, source, tmp_path / "b", batch_size=4, shard_rows=5, workers=0)  # other shards, same batches
    assert compiled == [], "the same batches were compiled again"
    evaluate(model, source, batch_size=4, workers=0)
    compiled.clear()
    evaluate(model, source, batch_size=4, workers=0)
    assert compiled == [], "a second evaluation compiles again"
    model.encode_image(np.zeros((3, 32, 32, 3), np.uint8))
    assert len(compiled) == 1, "the count cannot fail"


CODE = """
import json, os, sys
from jaxclip import cli
def models():
    import jax
    hits = []
    jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.jit(lambda x: x * 2 + 1)(1.0)
    print(json.dumps([jax.config.jax_compilation_cache_dir, hits.count("/jax/compilation_cache/cache_hits")]))
cli.COMMANDS["models"] = models
sys.exit(cli.main(["models"]))
"""


def test_a_second_run_of_the_command_compiles_nothing(tmp_path: Path) -> None:
    """Programs are kept in the user's cache folder by default, and where JAX's own variable says if it is set."""

    def run(**variables: str) -> tuple[str, int]:
        environment = {n: v for n, v in os.environ.items() if n != "JAX_COMPILATION_CACHE_DIR"} | variables
        done = subprocess.run(
            [sys.executable, "-c", CODE], capture_output=True, text=True, env=environment, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        folder, hits = json.loads(done.stdout)
        return folder, hits

    folder, hits = run(XDG_CACHE_HOME=str(tmp_path))
    assert folder == str(tmp_path / "jaxclip" / "compiled") and hits == 0
    assert run(XDG_CACHE_HOME=str(tmp_path))[1] > 0, "what the first run compiled was compiled again"
    assert run(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine")) == (str(tmp_path / "mine"), 0)


def test_import_leaves_the_cache_as_it_is() -> None:
    """The library changes no setting of its user's JAX: only the command line does."""
    code = "import os, jaxclip; jaxclip.load_model; import jax; print(jax.config.jax_compilation_cache_dir)"
    environment = {n: v for n, v in os.environ.items() if n != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "None", done.stdout + done.stderr
