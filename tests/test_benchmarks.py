"""The benchmarks' own arithmetic: what they count, how they compare, where they write."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from benchmarks import contest, gpu, input_pipeline, scaling
from benchmarks.__main__ import SUITES, tables
from benchmarks.contest import Turn, process, ratio, take_turns
from benchmarks.flops import encoder_flops, flops, text_flops
from jaxclip import config
from jaxclip.errors import InputError
from jaxclip.files import replace_section
from jaxclip.models import clip
from jaxclip.models.convolutions import Conv3x3
from jaxclip.registry import model_config


def encoder(vision: config.Vision, batch: int):
    """An encoder's function and the shapes of its arguments."""
    cfg = config.ModelConfig("one", vision, config.Preprocess(vision.image_size), num_classes=1)
    graph, state = nnx.split(clip.abstract(cfg))
    size = vision.image_size
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
    return (lambda state, images: nnx.merge(graph, state).encode_image(images)[0]), state, images


def test_operations_of_a_transformer_are_those_of_its_formula() -> None:
    """A scan is counted once for each of its steps; XLA's own analysis counts it once, which would flatter nobody."""
    w, depth, heads, mlp, n = 64, 5, 2, 192, 3
    vision = config.ViT(32, 8, w, depth, heads, mlp, 24)
    patches, t = 16, 17
    block = 2 * t * w * 3 * w + 2 * t * w * w + 2 * 2 * t * t * w + 2 * 2 * t * w * mlp
    ends = 2 * patches * 3 * 64 * w + 2 * w * 24
    assert encoder_flops(vision) == depth * block + ends
    # What the last block computes: the class token's query, and what is attended to by each head; out, and the MLP.
    alone = 2 * w * w + 2 * 2 * w * w + 2 * 2 * t * heads * w + 2 * w * w + 2 * 2 * w * mlp
    assert flops(*encoder(vision, n)) == n * ((depth - 1) * block + alone + ends)
    text = config.Text(t, 100, w, depth, heads, mlp, 24)
    assert text_flops(text) == depth * block + 2 * w * 24


def test_operations_of_a_convolution() -> None:
    """Outputs x kernel area x input channels x 2, whatever the stride."""

    def conv(x: jax.Array, k: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, k, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 8, 8, 5), (3, 3, 5, 7))]
    assert flops(conv, *shapes) == 2 * (2 * 4 * 4 * 7) * 9 * 5


@pytest.mark.parametrize("name", ["resnet50", "RN50"])
def test_operations_of_a_resnet_are_about_xlas(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """XLA, which adds norms, activations and softmax and leaves out a convolution's padding, counts 10 % other.

    A convolution by Winograd's algorithm counts as what it computes, so that rates can be compared with PyTorch's.
    """
    function, *args = encoder(model_config(name).vision, 1)
    counted = flops(function, *args)
    monkeypatch.setattr(Conv3x3, "__call__", nnx.Conv.__call__)
    function, *args = encoder(model_config(name).vision, 1)
    assert flops(function, *args) == counted
    assert encoder_flops(model_config(name).vision) == pytest.approx(counted, rel=0.08)
    assert counted == pytest.approx(jax.jit(function).lower(*args).cost_analysis()["flops"], rel=0.1)


def test_published_operations() -> None:
    """torchvision says 4.09 G multiply-adds for its ResNet-50; open_clip's table 4.41 for ViT-B/32's image tower."""
    assert encoder_flops(model_config("resnet50").vision) == pytest.approx(2 * 4.09e9, rel=0.01)
    assert encoder_flops(model_config("ViT-B-32").vision) == pytest.approx(2 * 4.41e9, rel=0.02)


def test_the_study_is_all_models_on_all_pictures() -> None:
    """17 + 17 + 5 + 1 models, the six sets and Broden."""
    found = scaling.study()
    assert (found["models"], found["pictures"]) == (40, 230_268)
    assert sum(found["flop"].values()) > 40 * 230_268 * 8e9, "less than ResNet-50 or ViT-B/32 for every model"


def test_contestants_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, again and again: no contestant has the quiet minutes for itself."""
    monkeypatch.setattr(contest, "PAUSE", 0)
    order = []

    def run(name: str, seconds: float) -> Turn:
        order.append(name)
        return Turn(seconds, None)

    times = take_turns({"a": lambda: run("a", 1.0), "b": lambda: run("b", 2.0)}, seconds=6)
    assert order == ["a", "b"] * 3
    assert times == {"a": [1.0] * 3, "b": [2.0] * 3}
    assert len(take_turns({"a": lambda: run("a", 100.0)}, seconds=6)["a"]) == 2, "fewer than the least"
    assert len(take_turns({"a": lambda: run("a", 1e-3)}, seconds=6)["a"]) == 7, "more than the most"
    assert ratio([1.0, 10.0, 1.0], [2.0, 20.0, 30.0]) == 2.0, "not the median of the turns' own ratios"


def prepare(size: int) -> dict:
    held = []
    return {"pid": os.getpid, "hold": lambda: held.append(b"x" * size), "fail": lambda: 1 // 0}


def test_a_contestant_is_a_process_of_its_own() -> None:
    """With its own memory, counted from when all was prepared; its errors come out here."""
    with process(prepare, 50_000_000) as call:
        assert call("pid").value not in (os.getpid(), None)
        before = call("peak memory").value
        call("hold")
        assert call("peak memory").value - before == pytest.approx(50e6, rel=0.1)
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            call("fail")


def test_tables_say_what_was_measured() -> None:
    """Rates, ratio and shares from made-up seconds, worked out by hand."""
    seconds = {"jaxclip": [2.0, 2.0], "PyTorch": [4.0, 4.0], "torch.compile": [3.0, 3.0], "XLA GEMM": [0.5, 0.5]}
    seconds |= {"XLA GEMM by YNNPACK": [0.6, 0.6], "PyTorch GEMM": [0.25, 0.25]}  # the limit is the faster of XLA's
    bytes_ = {"jaxclip": 1e9, "PyTorch": 2e9}
    encoded = {
        "machine": "a made-up machine",
        "batch": 32,
        "flop": int(1.8 * 2048**3 * 20),  # in 2 s, of 5 times 2 * 2048**3 in 0.5 s: 90 %
        "seconds": seconds,
        "compile seconds": {"jaxclip": 1.25, "PyTorch": 0.0, "torch.compile": 40.0},
        "first batch seconds": {"jaxclip": 5.0, "PyTorch": 7.0},
        "peak memory bytes": bytes_,
    }
    text = tables(
        {
            "encoders": {
                "ViT-B/16": encoded,
                "ViT-B/16, bfloat16": encoded | {
                    "seconds": seconds | {"jaxclip": [0.5, 0.5], "XLA GEMM by YNNPACK": [0.05] * 2}
                },
            },
            "end_to_end": {"ViT-B/32": {"machine": "another", "seconds": {"jaxclip": [50.0], "PyTorch": [60.0]}}},
            "training": {
                "CLIP ViT-B/32, batch 16": {
                    "machine": "another, load 2.5", "batch": 16, "peak memory bytes": bytes_,
                    "seconds": {"jaxclip": [2.0], "PyTorch": [1.0]},
                },
                "ResNet-50, batch 8": {
                    "machine": "another, load 1.5", "batch": 8, "peak memory bytes": bytes_,
                    "seconds": {"jaxclip": [1.0], "PyTorch": [1.5]},
                }
            },
            "analysis": {
                "prune_sweep": {
                    "machine": "another", "peak memory bytes": 1e9,
                    "rows": [
                        {"what": "all", "seconds": [90.0], "peers": []},
                        {
                            "what": "pruning", "seconds": [2.0, 2.2, 8.0],
                            "peers": [
                                {"name": "classifying", "faster": False, "aim": "< 3", "seconds": [1.0, 1.0, 1.0]},
                                {"name": "by hand", "faster": True, "aim": "by far", "seconds": [20.0, 22.0, 40.0]},
                            ],
                        },
                    ],
                }
            },
        }
    )  # fmt: skip
    assert "float32 where nothing else is said (a made-up machine):" in text
    assert "| ViT-B/16 | 16 | 8 | 10.7 | 1.50 | 90% | 1.0 (2.0) GB | 1.2 (40) s | 5 (7) s |" in text
    assert "| ViT-B/16, bfloat16 | 64 | 8 | 10.7 | 6.00 | 36% | 1.0" in text
    assert "float32 172 GFLOP/s in XLA, 344 in PyTorch; bfloat16 1718 GFLOP/s in XLA, 344 in PyTorch." in text
    assert "| ViT-B/32 | 50 s | 60 s | 1.20 |" in text
    assert "| all | 90 | – | – | – | < 120 s |" in text
    assert "| pruning | 2.2 | classifying | 1 | 2.20 times its time | < 3 |" in text
    assert "| pruning | 2.2 | by hand | 22 | 10.0 times as fast | by far |" in text
    assert "said (another, load 1.5 to 2.5):" in text
    assert "| ResNet-50, batch 8 | 8 | 5.33 | 1.50 | 1.0 (2.0) GB |" in text
    assert "Scaling" not in text, "a table of nothing"


def test_the_input_pipelines_table_says_what_was_measured() -> None:
    """100 pictures in 0.5 and 1 s, with 0.4 and 0.6 s of the processor's time."""
    result = {
        "pictures": 100, "seconds": {"jaxclip": [0.5], "torchvision": [1.0]}, "device pace": 133.3,
        "processor seconds": {"jaxclip": 0.4, "torchvision": 0.6}, "device busy": [0.98, 0.97, 0.5],
        "peak memory bytes": {"100": 4e8, "200": 5e8},
    }  # fmt: skip
    text = input_pipeline.table({"files": result})
    assert "| files, pictures/s | 200 | 100 | 2.00 |" in text
    assert "| processor's time for a picture | 4.0 ms | 6.0 ms | |" in text
    assert "| a made-up device of 133 pictures/s has work | 97.0% of the time | | |" in text
    assert "| peak memory of embedding 100, 200 of them | 400, 500 MB | | |" in text


def test_a_gpus_table_says_what_was_measured() -> None:
    """Rates and shares from made-up seconds: 100 pictures of 2 TFLOP in 0.5 s are 400 TFLOP/s."""
    encoded = {
        "machine": "NVIDIA H100 80GB HBM3, jax 1", "batch": 100, "flop": 2 * 10**14, "product flop": 10**13,
        "seconds": {"jaxclip": [0.5], "PyTorch": [1.0], "torch.compile": [0.6], "XLA GEMM": [0.0125]},
        "memory": {"jaxclip": 2e9, "PyTorch": 3e9},
    }  # fmt: skip
    trained = encoded | {"machine": "another", "seconds": {"jaxclip": [0.5], "PyTorch": [1.0]}}
    text = gpu.table({"encoding A, GPU": encoded, "training B, GPU": trained})
    assert "| encoding A, batch 100 | 200 | 100 | 167 | 1.20 | 400 | 50% | 40% | 2.0 (3.0) GB |" in text
    assert "| training B, batch 100 | 200 | 100 | – | 2.00 | 400 | – | – | 2.0 (3.0) GB |" in text


def test_what_a_processor_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 only where there are instructions for it: elsewhere PyTorch's side takes minutes."""
    for flags, able in (("avx2 amx_bf16", True), ("avx512f avx512_bf16", True), ("avx2 avx512f", False), ("", False)):
        monkeypatch.setattr(contest, "_processor", lambda flags=flags: {"flags": flags})
        assert contest.can_run("ViT-B/32, bfloat16") is able
        assert contest.can_run("ViT-B/32")


def test_suites_have_what_the_command_needs() -> None:
    for suite in SUITES.values():
        assert suite.CASES and suite.TITLE and callable(suite.measure) and callable(suite.table)


def test_section_of_a_page(tmp_path: Path) -> None:
    """The text between the marks is replaced, whatever is in it; all else stays; a page without marks is refused."""
    page = tmp_path / "README.md"
    page.write_text("# A\n<!-- b -->\nold\n\\1 lines\n<!-- /b -->\nrest\n<!-- c -->\nmine\n<!-- /c -->\n")
    for text in ("| new |\n\\g<0>", "newer"):
        replace_section(page, "b", text)
        assert page.read_text() == f"# A\n<!-- b -->\n{text}\n<!-- /b -->\nrest\n<!-- c -->\nmine\n<!-- /c -->\n"
    with pytest.raises(InputError, match="<!-- d -->"):
        replace_section(page, "d", "text")
