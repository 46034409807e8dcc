"""Programs are compiled once: within a run, and over runs of the command line."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import class_folders, tiny_classifier, tiny_clip

from jaxclip import compiler, store
from jaxclip.datasets import open_source
from jaxclip.embedding import embed
from jaxclip.evaluation import evaluate
from jaxclip.model import Model


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
    imagenet_samples: list[Path], tmp_path: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A last batch, or a last shard, of another shape would compile the encoder again: seconds for each model."""
    source = open_source(class_folders(imagenet_samples, tmp_path / "animals"))  # 7 pictures
    model = tiny_classifier.__wrapped__(2)  # of its own: the cached one is compiled for what other tests asked
    monkeypatch.setattr(store, "SHARD_ROWS", 6)
    embed(model, source, tmp_path / "a", batch_size=4, workers=0)
    assert len(compiled) > 0, "the listener hears nothing"
    assert model._encode_image._cache_size() == 1
    compiled.clear()
    monkeypatch.setattr(store, "SHARD_ROWS", 5)
    embed(model, source, tmp_path / "b", batch_size=4, workers=0)  # other shards, same batches
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


@pytest.mark.cpu
def test_float32_products_are_left_to_xla_and_others_to_ynnpack() -> None:
    """On a CPU: were the option unknown to this jaxlib, encoders would be slower without a word."""
    x = jax.numpy.ones((64, 64))
    for ynnpack in (False, True):
        options = compiler.compiler_options(ynnpack_products=ynnpack)
        program = jax.jit(lambda a, b: a @ b).lower(x, x).compile(options).as_text()
        assert ("ynn_fusion" in program) == ynnpack


def test_a_gpu_leaves_products_to_cublas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes biases and residual sums in; a TPU is told nothing."""
    for backend, expected in (("gpu", {compiler.TRITON: False}), ("tpu", {})):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        assert compiler.compiler_options.__wrapped__(ynnpack_products=True) == expected


@pytest.mark.cpu
def test_a_compiler_that_does_not_know_the_option_is_not_given_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else no model would run with a jaxlib that calls it otherwise."""
    monkeypatch.setattr(compiler, "KERNELS", "xla_cpu_no_such_option")
    assert compiler.compiler_options.__wrapped__(ynnpack_products=True) == {}


@pytest.mark.parametrize("make", [tiny_clip, lambda: tiny_classifier(2)], ids=["clip", "classifier"])
def test_encoders_within_transformations(make: Callable[[], Model]) -> None:
    """A user's own jit, grad or vmap around a model; options of the compiler belong to the outermost jit alone."""
    model = make()
    images = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
    h = model.encode_image(images)
    np.testing.assert_allclose(jax.jit(model.encode_image)(images), h, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda: model.encode_image(images))(), h, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jax.vmap(model.encode_image)(images[:, None])[:, 0], h, rtol=1e-4, atol=1e-5)
    gradient = jax.grad(lambda x: model.encode_image(x)[:, 0].sum())(images)
    change = 1e-2 * np.sign(gradient)
    moved = (model.encode_image(images + change) - model.encode_image(images - change))[:, 0].sum()
    np.testing.assert_allclose(moved, 2 * (gradient * change).sum(), rtol=0.02)
    if model.config.text is not None:
        tokens = np.ones((2, 8), np.int32)
        text = model.encode_text(tokens)
        np.testing.assert_allclose(jax.jit(model.encode_text)(tokens), text, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(jax.jit(lambda: model.encode_text(tokens))(), text, rtol=1e-4, atol=1e-5)
