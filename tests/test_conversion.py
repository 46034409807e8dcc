"""Conversion refuses what it cannot convert, by name, and leaves nothing behind; what it converts is exact."""

import http.server
import io
import json
import os
import pickle
import re
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from checkpoints_conversion import describe, sources, tables
from checkpoints_conversion.convert import convert
from jaxclip import checkpoint
from jaxclip.config import Preprocess, from_open_clip
from jaxclip.errors import InputError
from jaxclip.models import clip

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 2},
    "text_cfg": {"context_length": 77, "vocab_size": 300, "width": 32, "heads": 2, "layers": 2},
}


def shapes() -> dict[str, tuple[int, ...]]:
    """The names and shapes of open_clip's state dict for CONFIG, from open_clip's documentation of itself: its code."""
    out = {
        "positional_embedding": (77, 32), "text_projection": (32, 16), "logit_scale": (),
        "visual.class_embedding": (32,), "visual.positional_embedding": (5, 32), "visual.proj": (32, 16),
        "visual.conv1.weight": (32, 3, 16, 16), "token_embedding.weight": (300, 32),
    }  # fmt: skip
    for norm in ("visual.ln_pre", "visual.ln_post", "ln_final"):
        out |= {f"{norm}.weight": (32,), f"{norm}.bias": (32,)}
    for tower in ("visual.", ""):
        for i in range(2):
            block = f"{tower}transformer.resblocks.{i}"
            out |= {f"{block}.attn.in_proj_weight": (96, 32), f"{block}.attn.in_proj_bias": (96,)}
            for name, n_out, n_in in (("attn.out_proj", 32, 32), ("mlp.c_fc", 128, 32), ("mlp.c_proj", 32, 128)):
                out |= {f"{block}.{name}.weight": (n_out, n_in), f"{block}.{name}.bias": (n_out,)}
            for name in ("ln_1", "ln_2"):
                out |= {f"{block}.{name}.weight": (32,), f"{block}.{name}.bias": (32,)}
    return out


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes().items()}


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "open_clip.json").write_text(json.dumps(CONFIG))
    return str(tmp_path / "open_clip.json")


def test_every_number_arrives_where_it_belongs(tensors, model, tmp_path: Path) -> None:
    """Spot checks by hand of each transform: transposed, stacked, flattened, copied; and not a number is changed."""
    save_file(tensors, tmp_path / "w.safetensors")
    convert(tmp_path / "w.safetensors", model, tmp_path / "out")
    config, module = checkpoint.restore(tmp_path / "out")
    ours = {name: np.asarray(x) for name, x in checkpoint.named(module).items()}
    np.testing.assert_array_equal(ours["vision.class_token"], tensors["visual.class_embedding"])
    np.testing.assert_array_equal(
        ours["text.transformer.blocks.qkv.kernel"][1], tensors["transformer.resblocks.1.attn.in_proj_weight"].T
    )
    np.testing.assert_array_equal(
        ours["vision.patch_embedding.kernel"].reshape(16, 16, 3, 32)[2, 5, 1],
        tensors["visual.conv1.weight"][:, 1, 2, 5],
    )
    total = lambda arrays: sorted(np.concatenate([x.ravel() for x in arrays]))  # noqa: E731
    assert total(ours.values()) == total(tensors.values())
    assert config.source["format"] == "open_clip" and len(config.source["sha256"]) == 64


def test_half_precision_is_widened_exactly(tensors, model, tmp_path: Path) -> None:
    """float16 and bfloat16 sources become float32 without a change of value."""
    import ml_dtypes

    for dtype in (np.float16, ml_dtypes.bfloat16):
        halves = {name: x.astype(dtype) for name, x in tensors.items()}
        save_file(halves, tmp_path / "w.safetensors")
        convert(tmp_path / "w.safetensors", model, tmp_path / "out", overwrite=True)
        _, module = checkpoint.restore(tmp_path / "out")
        array = checkpoint.named(module)["vision.projection"]
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, halves["visual.proj"].astype(np.float32))


def test_sharded_safetensors_with_an_index(tensors, model, tmp_path: Path) -> None:
    """Hugging Face splits large models over files; the index names them, and a file that is missing is named."""
    folder = tmp_path / "sharded"
    folder.mkdir()
    names = sorted(tensors)
    files = {"model-00001-of-00002.safetensors": names[:20], "model-00002-of-00002.safetensors": names[20:]}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    index = {name: file for file, part in files.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    convert(folder, model, tmp_path / "out")
    _, module = checkpoint.restore(tmp_path / "out")
    np.testing.assert_array_equal(checkpoint.named(module)["vision.projection"], tensors["visual.proj"])
    before = sources.open_weights(str(folder)).digest
    changed = {name: np.asarray(tensors[name] + (name == names[-1])) for name in names[20:]}
    save_file(changed, folder / "model-00002-of-00002.safetensors")
    assert sources.open_weights(str(folder)).digest != before, "provenance that other weights have, too"
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"model-00002-of-00002.safetensors is missing"):
        convert(folder, model, tmp_path / "out2")


@pytest.mark.parametrize("length", [0x80, 0x3C20, 0x4B50])
def test_safetensors_whose_header_begins_like_another_format(length: int, tmp_path: Path, monkeypatch) -> None:
    """The length of the header comes first, and its bytes can be those of a pickle, of HTML or of a zip archive."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode().ljust(length)
    path = tmp_path / "w.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + header + np.ones(2, np.float32).tobytes())
    monkeypatch.setattr(sources, "_open_torch", None)
    np.testing.assert_array_equal(sources.open_weights(str(path)).read("w"), np.ones(2))


def _missing(tensors: dict, path: Path) -> None:
    del tensors["visual.ln_post.bias"]
    save_file(tensors, path)


def _unexpected(tensors: dict, path: Path) -> None:
    save_file(tensors | {"visual.transformer.resblocks.2.ln_1.bias": np.zeros(32, np.float32)}, path)


def _wrong_shape(tensors: dict, path: Path) -> None:
    save_file(tensors | {"visual.proj": np.zeros((32, 17), np.float32)}, path)


def _truncated(tensors: dict, path: Path) -> None:
    save_file(tensors, path)
    path.write_bytes(path.read_bytes()[:-1000])


def _corrupt_header(tensors: dict, path: Path) -> None:
    save_file(tensors, path)
    data = bytearray(path.read_bytes())
    data[20:40] = b"\xff" * 20
    path.write_bytes(bytes(data))


def _other_layout(tensors: dict, path: Path) -> None:
    save_file({"embedding.table": np.zeros(3, np.float32)}, path)


BAD = {
    "missing tensor": (_missing, r"missing: visual\.ln_post\.bias"),
    "unexpected tensor": (_unexpected, r"not of this model: visual\.transformer\.resblocks\.2\.ln_1\.bias"),
    "wrong shape": (_wrong_shape, r"'visual\.proj' has shape \(32, 17\).*\(32, 16\).*--model"),
    "truncated": (_truncated, r"truncated or corrupt"),
    "corrupt header": (_corrupt_header, r"truncated or corrupt"),
    "another layout": (_other_layout, r"no known layout.*embedding\.table"),
    "web page": (lambda _, p: p.write_text("<!DOCTYPE html><html>login</html>"), r"web page"),
    "LFS pointer": (lambda _, p: p.write_text("version https://git-lfs.github.com/spec/v1\n"), r"Git LFS pointer"),
    "empty": (lambda _, p: p.write_bytes(b""), r"is empty"),
    "noise": (lambda _, p: p.write_bytes(bytes(range(40, 200))), r"neither a safetensors nor a PyTorch file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_file_is_one_clear_error_and_leaves_nothing(kind: str, tensors, model, tmp_path: Path) -> None:
    """The message names the file and the tensor; no output folder, not even a temporary one, remains."""
    make, message = BAD[kind]
    path = tmp_path / "w.safetensors"
    make(tensors, path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=message) as error:
        convert(path, model, tmp_path / "out")
    assert "w.safetensors" in str(error.value) and "\n" not in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


class Evil:
    """What a malicious pickle looks like: loading it would create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_is_no_weights_is_never_run(tmp_path: Path, model) -> None:
    """Neither a bare pickle nor one in PyTorch's zip format gets to run its code."""
    torch = pytest.importorskip("torch")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Evil(tmp_path / "pwned")))
    torch.save({"visual.proj": Evil(tmp_path / "pwned")}, tmp_path / "zip.pt")
    torch.save([1, 2, 3], tmp_path / "list.pt")
    for name, message in (("bare.pt", "refused|corrupt"), ("zip.pt", "refused"), ("list.pt", "no state dict")):
        with pytest.raises(InputError, match=message):
            convert(tmp_path / name, model, tmp_path / "out")
        assert not (tmp_path / "pwned").exists()


def test_pytorch_wrappers_are_opened(tensors, model, tmp_path: Path) -> None:
    """Training checkpoints wrap the weights, DistributedDataParallel prefixes them, old files are no zip archives."""
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(x.copy()) for name, x in tensors.items()}
    prefixed = {f"module.{name}": x for name, x in state.items()}
    torch.save({"epoch": 3, "state_dict": prefixed, "optimizer": {"state": {}}}, tmp_path / "wrapped.pt")
    torch.save(state, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for name in ("wrapped.pt", "old.bin"):
        convert(tmp_path / name, model, tmp_path / f"{name}.out")
        _, module = checkpoint.restore(tmp_path / f"{name}.out")
        np.testing.assert_array_equal(checkpoint.named(module)["vision.projection"], tensors["visual.proj"])
    (tmp_path / "short.pt").write_bytes((tmp_path / "wrapped.pt").read_bytes()[:5000])
    with pytest.raises(InputError, match=r"truncated or corrupt|refused"):
        convert(tmp_path / "short.pt", model, tmp_path / "out")


@pytest.mark.parametrize(("content", "message"), [("[]", "is not a JSON object"), ("{", "is not JSON")])
def test_the_json_beside_weights_is_an_object(content: str, message: str, tensors, tmp_path: Path) -> None:
    """Whatever its name says, it is read as what it is, or named."""
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=rf"config\.json {message}"):
        sources.open_weights(str(tmp_path))


@pytest.mark.parametrize("length", [1, 2, 3, 20, 100, 200, 500, 1000, -1000, -200, -20, -1])
def test_an_old_pytorch_file_that_is_cut_short_is_one_error(length: int, tensors, tmp_path: Path) -> None:
    """PyTorch's readers raise what they please, without a message at times."""
    torch = pytest.importorskip("torch")
    path = tmp_path / "old.pth"
    torch.save({n: torch.from_numpy(x.copy()) for n, x in tensors.items()}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError, match=r"old\.pth is (truncated or corrupt \(\S|refused)") as error:
        sources.open_weights(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "raised", [EOFError(), IndexError("pop from empty list"), AssertionError(), TypeError("\nx\ny")]
)
def test_whatever_pytorch_raises_is_one_error(raised: Exception, tmp_path: Path, monkeypatch) -> None:
    torch = pytest.importorskip("torch")

    def load(*_: object, **__: object) -> None:
        raise raised

    torch.save({}, tmp_path / "w.pt")
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(InputError, match=r"w\.pt is truncated or corrupt \([^\n]+\): download it again$"):
        sources.open_weights(str(tmp_path / "w.pt"))


def test_keys_that_are_no_names_are_left_out(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({0: torch.ones(2), "module.weight": torch.ones(3), None: torch.ones(4)}, tmp_path / "some.pt")
    assert sources.open_weights(str(tmp_path / "some.pt")).shapes == {"weight": (3,)}
    torch.save({0: torch.ones(2)}, tmp_path / "none.pt")
    with pytest.raises(InputError, match=r"none\.pt holds no state dict"):
        sources.open_weights(str(tmp_path / "none.pt"))


def test_a_tensor_that_is_no_array_of_floats_is_one_error(tmp_path: Path) -> None:
    """Sparse, without data, or of a type that NumPy does not have; the others of the file are read."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    whole = {str(t): torch.ones(3, dtype=t) for t in (torch.int8, torch.int64, torch.bool, torch.complex64)}
    bad = {"sparse": torch.eye(3).to_sparse(), "meta": torch.empty(3, device="meta"), **whole}
    others = {"float8": torch.ones(3).to(torch.float8_e4m3fn), **whole}
    torch.save({**bad, "good": torch.ones(3)}, tmp_path / "w.pt")
    save_torch({**others, "good": torch.ones(3)}, tmp_path / "w.safetensors")
    for file, names in {"w.pt": bad, "w.safetensors": others}.items():
        opened = sources.open_weights(str(tmp_path / file))
        for name in names:
            with pytest.raises(InputError, match=rf"{file}: tensor {name} cannot be read \([^\n]+\): \w") as error:
                opened.read(name)
            assert "\n" not in str(error.value)
        np.testing.assert_array_equal(opened.read("good"), np.ones(3))


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e300])
def test_a_number_that_float32_does_not_hold_is_one_error(number: float, tensors, model, tmp_path: Path) -> None:
    """It would be NaN in every representation, far from its cause."""
    tensors["visual.proj"] = tensors["visual.proj"].astype(np.float64)
    tensors["visual.proj"][3, 2] = number
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"tensor 'visual\.proj' holds NaN, infinities or what float32 cannot hold"):
        convert(tmp_path / "w.safetensors", model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("part", "change", "says"),
    [
        ("vision_cfg", {"width": 0}, "x.json: vision.width is 0"),
        ("vision_cfg", {"layers": -1}, "x.json: vision.layers is -1"),
        ("vision_cfg", {"layers": [3, 0, 6, 3], "width": 32}, "x.json: vision.layers is 0"),
        ("vision_cfg", {"patch_size": 0}, "x.json: vision.patch_size is 0"),
        ("vision_cfg", {"image_size": 40}, "x.json: vision.image_size is 40, which is not a multiple of 16"),
        ("vision_cfg", {"layers": [1, 1, 1, 1], "image_size": 80}, "is 80, which is not a multiple of 32"),
        ("vision_cfg", {"head_width": 10}, "x.json: vision.width is 32, which is not a multiple of 3"),
        ("vision_cfg", {"attentional_pool": True}, None),
        ("vision_cfg", {"attentional_pool": True, "attn_pooler_heads": 5}, "vision.output_dim is 16, which is not"),
        ("vision_cfg", {"norm_kwargs": {"epsilon": 0.1}}, "vision_cfg.norm_kwargs.epsilon is not supported"),
        ("text_cfg", {"heads": 3}, "x.json: text.width is 32, which is not a multiple of 3"),
        ("text_cfg", {"norm_kwargs": {"eps": float("nan")}}, "text.norm_eps is nan: it must be finite"),
        ("preprocess_cfg", {"std": [0.0, 1.0, 1.0]}, "preprocess.std is (0.0, 1.0, 1.0): it must be positive"),
        ("preprocess_cfg", {"mean": [0, 0, 0], "std": [1, 1, 1]}, None),
        ("preprocess_cfg", {"mode": "L"}, "preprocess_cfg.mode = 'L' is not supported"),
    ],
)
def test_numbers_that_make_no_model_are_refused(part: str, change: dict, says: str | None) -> None:
    """Rather than converted, to fail in JAX at the first picture."""
    data = {"model_cfg": CONFIG, "preprocess_cfg": {}}
    if part == "preprocess_cfg":
        data = {**data, part: change}
    else:
        data = {**data, "model_cfg": {**CONFIG, part: {**CONFIG[part], **change}}}
    if says is None:
        from_open_clip(data, "x", "x.json")
        return
    with pytest.raises(InputError, match=re.escape(says)):
        from_open_clip(data, "x", "x.json")


def test_a_size_without_its_weights_is_not_allocated(tensors, tmp_path: Path) -> None:
    """A config of 10^15 words is a misfit, not a MemoryError."""
    huge = {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "vocab_size": 10**15}}
    (tmp_path / "huge.json").write_text(json.dumps(huge))
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"'token_embedding\.weight' has shape \(300, 32\), which does not fit"):
        convert(tmp_path / "w.safetensors", str(tmp_path / "huge.json"), tmp_path / "out")


def test_wrong_names_and_places(tensors, model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown model suggests the nearest; an absent path, a taken output and a missing --model are said."""
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="ViT-B-32"):
        convert(tmp_path / "w.safetensors", "ViT-B32", tmp_path / "out")
    with pytest.raises(InputError, match=r"tensor.*missing|not of this model|does not fit"):
        convert(tmp_path / "w.safetensors", "RN50", tmp_path / "out")
    with pytest.raises(InputError, match=r"'visual\.\S+' has shape|missing"):
        convert(tmp_path / "w.safetensors", "ViT-B-16", tmp_path / "out")
    with pytest.raises(InputError, match="pass --model"):
        convert(tmp_path / "w.safetensors", None, tmp_path / "out")
    with pytest.raises(InputError, match="does not exist"):
        convert(tmp_path / "absent.safetensors", model, tmp_path / "out")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(InputError, match="exists already"):
        convert(tmp_path / "w.safetensors", model, tmp_path / "taken")
    with pytest.raises(InputError, match="taken is no checkpoint"):  # before a source of gigabytes is looked for
        convert(tmp_path / "absent.safetensors", model, tmp_path / "taken", overwrite=True)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def small_disk(tmp_path: Path):
    """A real file system of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"mounting a small file system is not allowed here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_full_disk_is_one_error_and_leaves_nothing(tensors, tmp_path: Path, small_disk: Path, capsys) -> None:
    """The command says which folder did not fit, exits with 2, and takes its part-written files away."""
    from jaxclip.cli import main

    large = np.random.default_rng(0).standard_normal((60_000, 32)).astype(np.float32)  # 7.7 MB
    save_file(tensors | {"token_embedding.weight": large}, tmp_path / "w.safetensors")
    text = {**CONFIG["text_cfg"], "vocab_size": 60_000}
    (tmp_path / "open_clip.json").write_text(json.dumps({**CONFIG, "text_cfg": text}))
    args = [str(tmp_path / "w.safetensors"), "--model", str(tmp_path / "open_clip.json"), "--out"]
    assert main(["convert", *args, str(small_disk / "out")]) == 2
    message = capsys.readouterr().err
    assert str(small_disk / "out") in message and "No space left" in message
    assert list(small_disk.iterdir()) == []
    assert main(["convert", *args, str(tmp_path / "out")]) == 0


def test_url(tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL is fetched whole and its digest is checked."""
    save_file(tensors, tmp_path / "clip.safetensors")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = (tmp_path / "clip.safetensors").as_uri()
    monkeypatch.setattr(sources, "_locate", lambda source: (sources._download(source), "clip", None))
    opened = sources.open_weights(url)
    assert opened.path.is_relative_to(tmp_path / "cache") and set(opened.shapes) == set(tensors)
    with pytest.raises(InputError, match="SHA-256"):
        sources.open_weights(url, "0" * 64)
    assert not opened.path.exists(), "a file with a wrong digest would be found again for ever"


COMMITS = {"main": "a" * 40, "v1": "b" * 40}


@pytest.fixture
def hub(tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Hugging Face's hub, as its client asks it: lab/clip of two revisions, lab/none of no weights, lab/shards of two
    files. Yields what ends the connection, or has the hub answer badly: "silent", "cut" or "html".
    """
    from huggingface_hub import constants

    config = json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {}}).encode()
    half = len(tensors) // 2
    parts = {
        "model-00001-of-00002.safetensors": list(tensors)[:half],
        "model-00002-of-00002.safetensors": list(tensors)[half:],
    }
    index = {name: part for part, names in parts.items() for name in names}
    older = {name: np.asarray(value + 1) for name, value in tensors.items()}
    files: dict[tuple[str, str], dict[str, bytes]] = {
        ("lab/clip", COMMITS["main"]): {"open_clip_config.json": config, "open_clip_model.safetensors": save(tensors)},
        ("lab/clip", COMMITS["v1"]): {"open_clip_config.json": config, "open_clip_model.safetensors": save(older)},
        ("lab/none", COMMITS["main"]): {"README.md": b"nothing"},
        ("lab/shards", COMMITS["main"]): {
            "open_clip_config.json": config,
            "model.safetensors.index.json": json.dumps({"weight_map": index}).encode(),
            **{part: save({name: tensors[name] for name in names}) for part, names in parts.items()},
        },
    }  # fmt: skip

    class Hub(http.server.BaseHTTPRequestHandler):
        how = "well"

        def do_GET(self) -> None:
            if self.how == "silent":
                return
            if self.how == "html":
                return self.answer(b"<!DOCTYPE html><html>log in</html>", "", {"Content-Type": "text/html"})
            _, *parts = self.path.partition("?")[0].split("/")
            if parts[0] == "api":
                repo, revision = "/".join(parts[2:4]), parts[5] if len(parts) > 4 else "main"
                commit = COMMITS.get(revision, revision)
                of_commit = files.get((repo, commit))
                names = [{"rfilename": name} for name in of_commit or ()]
                about: Any = {"id": repo, "sha": commit, "siblings": names}
                if "tree" in parts:
                    about = [
                        {"type": "file", "path": n, "size": len(b), "oid": n} for n, b in (of_commit or {}).items()
                    ]
                body = json.dumps(about).encode()
                code = "RevisionNotFound" if (repo, COMMITS["main"]) in files else "RepoNotFound"
                self.answer(None if of_commit is None else body, code, {})
            else:
                of_commit = files.get(("/".join(parts[:2]), parts[3]), {})
                body = of_commit.get(parts[4])
                self.answer(body, "EntryNotFound", {"X-Repo-Commit": parts[3], "ETag": f'"{hash(body)}"'})

        def do_HEAD(self) -> None:
            self.do_GET()

        def answer(self, body: bytes | None, error: str, headers: dict[str, str]) -> None:
            self.send_response(404 if body is None else 200)
            if body is None:
                headers = {**headers, "X-Error-Code": error}
            for name, value in {**headers, "Content-Length": str(len(body or b""))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                cut = self.how == "cut" and "safetensors" in self.path
                self.wfile.write((body or b"")[: 1000 if cut else None])

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")

    def change(how: str = "offline") -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", how == "offline")
        monkeypatch.setattr(Hub, "how", how)

    yield change
    server.shutdown()
    server.server_close()


def test_hub(hub, tensors, tmp_path: Path) -> None:
    """A hub id takes the best weights of the commit that the revision is, and says which; they need no hub again."""
    for name, revision, added in (("lab/clip", "main", 0), ("lab/clip@v1", "v1", 1), (f"lab/clip@{'b' * 40}", "v1", 1)):
        out = tmp_path / name.replace("/", "-")
        config = convert(name, None, out)
        assert config.vision == from_open_clip(CONFIG, "x").vision
        assert config.source["revision"] == COMMITS[revision] and config.source["file"] == name
        assert config.name == "lab/clip", "the files of all repositories are called alike"
        opened = sources.open_weights(name)
        np.testing.assert_array_equal(opened.read("visual.proj"), tensors["visual.proj"] + added)
    assert sources.open_weights("hf-hub:lab/clip:open_clip_model.safetensors").revision == COMMITS["main"]
    assert set(sources.open_weights("hf-hub:lab/shards").shapes) == set(tensors)
    hub()
    for name, revision in (("lab/clip", "main"), ("lab/clip@v1", "v1"), ("lab/shards", "main")):
        assert sources.open_weights(name).revision == COMMITS[revision]
    with pytest.raises(InputError, match=r"cannot be reached, and its cache has no model.safetensors of lab/clip"):
        sources.open_weights("hf-hub:lab/clip:model.safetensors")


def test_names(tensors, tmp_path: Path) -> None:
    """A study tells models by their names: those of one architecture have names of their own where they are given."""
    (tmp_path / "mine").mkdir()
    weights = tmp_path / "mine" / "open_clip_model.safetensors"
    save_file(tensors, weights)
    (tmp_path / "mine" / "open_clip_config.json").write_text(json.dumps(CONFIG))
    assert convert(tmp_path / "mine", None, tmp_path / "a").name == "mine", "the files of all folders are called alike"
    assert convert(weights, None, tmp_path / "b", name="tiny-2").name == "tiny-2"
    assert checkpoint.read_config(tmp_path / "b").name == "tiny-2"


def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    """A mistyped relative path reads like org/name."""
    with pytest.raises(InputError, match=r"weights/mine\.pt does not exist"):
        sources.open_weights("weights/mine.pt")


def test_what_the_hub_does_not_have(hub, tmp_path: Path) -> None:
    """One error each, that names the repository: no weights, no such file, revision, repository."""
    for name, message in {
        "lab/none": "lab/none has no weights",
        "hf-hub:lab/clip:other.bin": "lab/clip has no other.bin",
        "lab/clip@v9": "lab/clip@v9 cannot be read .RevisionNotFound",
        "lab/clap": "lab/clap cannot be read .RepositoryNotFound",
    }.items():
        with pytest.raises(InputError, match=message):
            convert(name, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", ["silent", "cut", "html"])
def test_a_hub_that_answers_badly_is_one_error(hub, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It closes the connection, in place of an answer or within the file, or answers with a login page."""
    from huggingface_hub.utils import _http

    monkeypatch.setattr(_http.time, "sleep", lambda _: None)  # between retries
    hub(how)
    with pytest.raises(InputError, match=r"repository lab/clip cannot be read \(\w+: \S.*check its path") as error:
        convert("lab/clip", None, tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1:9/model.pt",
        f"https://127.0.0.1:9/model.pt?signature={'0' * 5000}",
        "https://127.0.0.1/a model.pt",
        "https:///model.pt",
        "https://[bad/model.pt",
        "https://127.0.0.1:9/mödel.pt",
        "https://127.0.0.1:9/\udcff.pt",
        "https://.example.org/x.pt",
    ],
)
def test_a_url_that_leads_nowhere_is_one_error(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens, no URL, no host, letters that a URL has not."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"cannot be downloaded \(\S.*\): download it by hand") as error:
        sources.open_weights(url)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source", ["~nobodyhere/x.pt", "x" * 5000, "x/" * 5000, "\0"])
def test_a_path_that_can_be_none_is_one_error(source: str) -> None:
    """A home that nobody has, names that are too long for the system."""
    with pytest.raises(InputError, match=r"(cannot be opened \(\S.*\)|does not exist): give a file") as error:
        sources.open_weights(source)
    assert len(str(error.value)) < 400


def test_downloads_of_one_name_are_of_their_own_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most repositories call their weights model.safetensors: the second would be read from the first's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.safetensors").write_text(folder)
    paths = [sources._download((tmp_path / folder / "model.safetensors").as_uri()) for folder in ("one", "two")]
    assert [path.read_text() for path in paths] == ["one", "two"]


def test_a_download_that_is_cut_off_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Answer(io.BytesIO):
        headers: ClassVar = {"Content-Length": "10"}

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bodies = iter([b"12345", b"1234567890"])
    monkeypatch.setattr(sources.urllib.request, "urlopen", lambda url, timeout: Answer(next(bodies)))
    with pytest.raises(InputError, match="cut off after 5 of 10 bytes"):
        sources._download("https://example.org/w.pt")
    assert sources._download("https://example.org/w.pt").read_bytes() == b"1234567890"


def test_only_a_checkpoint_is_overwritten(tmp_path: Path) -> None:
    """--overwrite with a mistyped folder must not delete what is in it, nor move a file away."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    cfg = from_open_clip(CONFIG, "x")
    arrays = {name: np.zeros(leaf.shape, np.float32) for name, leaf in checkpoint.named(clip.abstract(cfg)).items()}
    for path, says in ((tmp_path / "mine", "is no checkpoint"), (tmp_path / "mine" / "thesis.txt", "is a file")):
        with pytest.raises(InputError, match=says):
            checkpoint.save(path, cfg, arrays, overwrite=True)
    assert [path.read_text() for path in (tmp_path / "mine").iterdir()] == ["all of it"]


def test_a_damaged_checkpoint_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, that of the storage layer, which names the array's file; Orbax's own message has dozens."""

    def restore(*_: object) -> None:  # as Orbax 0.12 does; the real one's abandoned reads would complain after pytest
        raise Exception("Encountered error\n'base': {\n}") from ValueError("DATA_LOSS: a/params/x/0.0: Truncated\nat 1")

    cfg = from_open_clip(CONFIG, "x")
    arrays = {name: np.ones(leaf.shape, np.float32) for name, leaf in checkpoint.named(clip.abstract(cfg)).items()}
    checkpoint.save(tmp_path / "out", cfg, arrays)
    monkeypatch.setattr(checkpoint.ocp.StandardCheckpointer, "restore", restore)
    says = "/params cannot be read (DATA_LOSS: a/params/x/0.0: Truncated): convert the checkpoint again"
    with pytest.raises(InputError, match=re.escape(says)):
        checkpoint.restore(tmp_path / "out")


HF_VIT = {"model_type": "vit", "num_labels": 10}
TIMM = {"architecture": "resnet50", "pretrained_cfg": {"input_size": [3, 224, 224], "mean": [0] * 3, "std": [1] * 3}}


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"open_clip_config.json": {"model_cfg": {**CONFIG, "vision_cfg": 3}}}, "open_clip_config.json: a value"),
        ({"open_clip_config.json": {"model_cfg": {**CONFIG, "embed_dim": "16"}}}, "output_dim is '16', which is not"),
        ({"open_clip_config.json": {"model_cfg": CONFIG, "preprocess_cfg": {"mean": 0.5}}}, "a value is not"),
        ({"open_clip_config.json": {"model_cfg": CONFIG, "preprocess_cfg": {"mean": [0.5]}}}, "preprocess: mean is"),
        ({"config.json": {**HF_VIT, "hidden_size": [768]}}, "config.json: vision: width is"),
        ({"config.json": HF_VIT, "preprocessor_config.json": {"do_resize": "no"}}, "with preprocessor_config.json"),
        ({"config.json": {"model_type": "resnet", "depths": 3, "num_labels": 2}}, "config.json: a value is not"),
        ({"config.json": {"model_type": "resnet", "num_labels": 2}}, "config.json: key 'depths' is missing"),
        ({"config.json": {"model_type": ["clip"]}}, "config.json: model_type ['clip'] is not one of clip, vit, resnet"),
        ({"config.json": {**TIMM, "pretrained_cfg": {"input_size": []}}}, "config.json: a value is not"),
        ({"config.json": {**TIMM, "pretrained_cfg": {}}}, "config.json: key 'input_size' is missing"),
    ],
)  # fmt: skip
def test_json_that_is_not_as_its_library_writes_it_is_one_error(files: dict, says: str) -> None:
    """Edited by hand or damaged: the file and the value are named, rather than a line of our own code."""
    with pytest.raises(InputError, match=re.escape(says)):
        describe.describe(files, "mine")


def test_verify_without_the_libraries_is_refused_before_converting(
    tensors, model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Rather than after minutes of conversion."""
    from checkpoints_conversion import verify
    from jaxclip.cli import main

    save_file(tensors, tmp_path / "w.safetensors")
    monkeypatch.setattr(verify, "LIBRARIES", ("numpy", "no_such_library"))
    command = ["convert", str(tmp_path / "w.safetensors"), "--model", model, "--out", str(tmp_path / "out"), "--verify"]
    assert main(command) == 2
    assert "--verify needs no_such_library, which cannot be imported" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_tokenizers_are_refused() -> None:
    """Such a model would be given CLIP's token ids, which mean nothing to it, and zero-shot heads of chance."""
    other = {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "hf_tokenizer_name": "bert-base-uncased"}}
    with pytest.raises(InputError, match=r"hf_tokenizer_name = 'bert-base-uncased' .* CLIP's own tokenizer only"):
        from_open_clip(other, "x")


def test_an_unknown_interpolation_is_refused_at_once() -> None:
    """timm's and open_clip's JSON say "random" at times: not a KeyError at the first picture."""
    with pytest.raises(InputError, match="interpolation is 'random', not bicubic or bilinear"):
        from_open_clip({"model_cfg": CONFIG, "preprocess_cfg": {"interpolation": "random"}}, "x")


SQUASHED, CUT = Preprocess(224, "squash"), Preprocess(224)


@pytest.mark.parametrize(
    ("data", "default", "expected"),
    [
        ({"size": 224}, SQUASHED, ("squash", None, 224)),
        ({"size": {"height": 384, "width": 384}}, SQUASHED, ("squash", None, 384)),
        ({"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": True}, SQUASHED, ("shortest", 256, 224)),
        ({"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}, CUT, ("shortest", None, 224)),
        ({"size": 224, "crop_pct": 0.875}, CUT, ("shortest", 256, 224)),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, CUT, ("squash", None, 384)),
        ({"size": 224, "do_normalize": False}, SQUASHED, "do_normalize False"),
        ({"size": 224, "do_resize": False}, SQUASHED, "do_resize False"),
        ({"size": 224, "rescale_factor": 1 / 127.5}, SQUASHED, "rescale_factor"),
        ({"size": {"height": 256, "width": 224}}, SQUASHED, "256 x 224"),
        ({"size": {"height": 256, "width": 256}, "crop_size": 224}, CUT, "crop of 224 from a square of 256"),
        ({"size": {"shortest_edge": 224}, "do_center_crop": False}, CUT, "without do_center_crop"),
        ({"size": 224, "do_center_crop": False}, CUT, "without do_center_crop"),
    ],
)
def test_hugging_faces_preprocessors(data: dict, default: Preprocess, expected: tuple | str) -> None:
    """As transformers' own processors do it (ConvNext's squashes from 384 pixels on); else an error, not a guess."""
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            describe._hf_pixels(data, default)
    else:
        found = describe._hf_pixels(data, default)
        assert (found.resize, found.resize_to, found.size) == expected


def test_published_weights_of_a_known_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a SOURCE the registry's own is taken, with its digest; without PyTorch, its safetensors twin."""
    from checkpoints_conversion import convert as module
    from jaxclip import registry

    class OpenedError(Exception):
        pass

    def open_weights(source: str, digest: str | None) -> None:
        raise OpenedError(source, digest)

    monkeypatch.setattr(module, "open_weights", open_weights)
    entry = registry.lookup("ViT-B-32/openai")
    with pytest.raises(OpenedError) as opened:
        convert(None, entry.name, tmp_path / "out")
    assert opened.value.args == (entry.source, entry.sha256) and len(entry.sha256) == 64
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OpenedError) as opened:
        convert(None, entry.name, tmp_path / "out")
    assert opened.value.args == (entry.mirror, None) and entry.mirror.endswith(".safetensors")
    with pytest.raises(InputError, match="no published weights"):
        convert(None, "RN50/imagenet_captions", tmp_path / "out")


@pytest.mark.parametrize("switched_off", [True, False])
def test_offline_hub_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, switched_off: bool) -> None:
    """Without a network the error names the repository, not a stack of retries; nothing of the client's comes out."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", switched_off)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    monkeypatch.setattr(_http.time, "sleep", lambda _: None)  # between retries
    with pytest.raises(InputError, match="lab/clip cannot be read"):
        convert("hf-hub:lab/clip", None, tmp_path / "out")


def test_a_block_that_is_not_known_is_one_error() -> None:
    """A Hugging Face ResNet of other blocks names the key and what is supported, rather than being read as basic."""
    data = {"model_type": "resnet", "depths": [1, 1], "hidden_sizes": [64, 128], "layer_type": "wide", "num_labels": 2}
    with pytest.raises(InputError, match=r"layer_type 'wide' is not supported, only .*basic"):
        describe.describe({"config.json": data}, "mine")


def test_tables_cover_every_array_of_every_architecture() -> None:
    """For each registry architecture the table's targets are exactly the model's arrays: none missing, none twice."""
    from jaxclip import registry

    formats = {"vit": ("timm_vit", "torchvision_vit", "hf_vit"), "resnet": ("resnet", "hf_resnet")}
    for entry in registry.table():
        config = registry.model_config(entry.name)
        if entry.group == "fine-tuned":  # made by jaxclip itself, so in no foreign format
            continue
        arrays = sorted(checkpoint.named(clip.abstract(config)))
        for source_format in ("open_clip",) if config.text else formats[config.to_json()["vision"]["type"]]:
            targets = [target for target, _, _ in tables.rows(source_format, config, ())]
            assert sorted(targets) == arrays, (entry.name, source_format)


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's high-water mark of memory")
@pytest.mark.parametrize("suffix", ["safetensors", pytest.param("pt", marks=pytest.mark.slow)])
def test_peak_memory_is_within_one_and_a_half_checkpoints(suffix: str, tmp_path: Path) -> None:
    """Conversion streams: what it adds to the resident memory is at most 1.5 times the checkpoint (600 MB here)."""
    torch = pytest.importorskip("torch")
    open_clip = pytest.importorskip("open_clip")
    from safetensors.torch import save_file as save_torch

    state = open_clip.create_model("ViT-B-32", pretrained=None).state_dict()
    path = tmp_path / f"w.{suffix}"
    save_torch(state, path) if suffix == "safetensors" else torch.save(state, path)
    del state
    script = f"""
        import resource
        import {"torch, " if suffix == "pt" else ""}jax
        import jax.numpy as jnp
        from checkpoints_conversion.convert import convert
        from jaxclip.models import clip
        from jaxclip.registry import model_config
        clip.abstract(model_config("ViT-B-32"))  # what tracing allocates is no part of the weights
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        before = peak()
        convert({str(path)!r}, "ViT-B-32", {str(tmp_path / "out")!r})
        print(peak() - before)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True, timeout=300
    )
    rise, size = int(result.stdout.split()[-1]), path.stat().st_size
    assert rise <= 1.5 * size, f"peak memory rose by {rise / size:.2f} times the checkpoint"
