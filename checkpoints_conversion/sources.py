"""Opens foreign weight files: names and shapes at once, tensors one at a time, so that memory stays near one copy."""

import dataclasses
import hashlib
import http.client
import re
import urllib.request
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp  # and registers bfloat16 with NumPy, which safetensors then reads
import numpy as np

from jaxclip.errors import InputError, reason
from jaxclip.files import cache_folder, new_file, read_object, sha256
from jaxclip.progress import progress

# Where a hub repository keeps its weights and its description, best first.
WEIGHT_FILES = (
    "model.safetensors", "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors",
    "model.safetensors.index.json", "pytorch_model.bin", "open_clip_pytorch_model.bin",
)  # fmt: skip
CONFIG_FILES = ("open_clip_config.json", "config.json", "preprocessor_config.json", "processor_config.json")
_AGAIN = "download it again"


@dataclasses.dataclass(frozen=True)
class Weights:
    """A file of weights, opened.

    Attributes:
        path: The file.
        name: What it is called: on the hub its repository, in a folder that (the files of both are all called alike),
            else the file without its ending.
        shapes: Every tensor's name and shape.
        read: Name → the tensor as float32 (float16 and bfloat16 widened). A tensor can be read once: its memory is
            given back to the system where the format allows.
        configs: The JSON files that stood beside it (``config.json``, ``open_clip_config.json``, …), parsed.
        digest: SHA-256 of the file; of several that an index names, of their digests one after the other.
        revision: The commit, of what came from Hugging Face's hub.
    """

    path: Path
    name: str
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    configs: dict[str, Any]
    digest: str
    revision: str | None = None


def open_weights(source: str, expected_digest: str | None = None) -> Weights:
    """Opens a file, a folder as Hugging Face lays it out, a hub id or a URL.

    Args:
        source: What to open. A hub id is ``[hf-hub:]org/name[@revision]``, with the prefix also ``…:file``. Hub files
            go to Hugging Face's cache, where they need no connection again, URLs to ``~/.cache/jaxclip``.
        expected_digest: SHA-256 that the file must have, where it is known.

    Raises:
        InputError: There is no such source, or it is not a file of weights; the message says what it is instead.
    """
    path, name, revision = _locate(source)
    folder = path.parent
    files = [folder / name for name in _shards(path)] if path.suffix == ".json" else [path]
    for file in files:
        if not file.is_file():
            raise InputError(f"{file} is missing: {path} names it")
    opened = [_open_file(file) for file in files]
    shapes = {name: shape for shapes, _ in opened for name, shape in shapes.items()}
    readers = {name: read for shapes, read in opened for name in shapes}
    digests = [sha256(file) for file in files]
    digest = digests[0] if files == [path] else hashlib.sha256("".join(digests).encode()).hexdigest()
    if expected_digest is not None and digest != expected_digest:
        if path.is_relative_to(cache_folder()):
            path.unlink()  # the same command downloads it again
        raise InputError(f"{path} has SHA-256 {digest}, not {expected_digest}: download it again")
    configs = {name: read_object(folder / name, _AGAIN) for name in CONFIG_FILES if (folder / name).is_file()}
    return Weights(path, name, shapes, lambda name: readers[name](name), configs, digest, revision)


def _shards(index: Path) -> list[str]:
    """The files that an index of weights names."""
    names = read_object(index, _AGAIN).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f"{index} has no weight_map, so it is no index of weights: give the weights' own file")
    return sorted(set(names.values()))


def _locate(source: str) -> tuple[Path, str, str | None]:
    """The file of weights, downloaded where it is elsewhere; what it is called; and the commit of one from the hub."""
    if source.startswith(("https://", "http://")):
        path = _download(source)
        return path, path.stem, None
    try:
        path = Path(source).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, RuntimeError) as error:
        why = error.strerror if isinstance(error, OSError) else reason(error)  # without the path, which may be long
        raise InputError(
            f"{source[:200]} cannot be opened ({why}): give a file, a folder, a hub id (org/name) or a URL"
        ) from error
    if is_folder:
        for name in WEIGHT_FILES:
            if (path / name).is_file():
                return path / name, path.resolve().name, None
        raise InputError(f"{path} holds no weights: none of {', '.join(WEIGHT_FILES)} is in it")
    if is_file:
        return path, path.stem, None
    hub_id = source.removeprefix("hf-hub:")
    a_file = source.endswith((".pt", ".pth", ".bin", ".safetensors", ".json"))
    if source != hub_id or (not a_file and re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", source)):
        return _from_hub(hub_id)
    raise InputError(f"{source} does not exist: give a file, a folder, a hub id (org/name) or a URL")


def _from_hub(hub_id: str) -> tuple[Path, str, str]:
    """The best weights of a repository, with what they need beside them, all of one commit; its name; the commit."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    place, _, file = hub_id.partition(":")
    repo, _, revision = place.partition("@")
    missing: list[EntryNotFoundError] = []
    try:
        # This alone asks the hub which commit a revision is, and takes the cache's where the hub is not to be reached.
        patterns = list(CONFIG_FILES)
        commit = Path(huggingface_hub.snapshot_download(repo, revision=revision or None, allow_patterns=patterns)).name
        for name in [file] if file else WEIGHT_FILES:
            try:
                path = Path(huggingface_hub.hf_hub_download(repo, name, revision=commit))
            except EntryNotFoundError as error:
                missing.append(error)
                continue
            if path.suffix == ".json":
                for shard in _shards(path):
                    huggingface_hub.hf_hub_download(repo, shard, revision=commit)
            return path, repo, commit
    except InputError:
        raise
    except Exception as error:  # the client lets out what its transports, storage and parsers raise
        raise InputError(
            f"Hugging Face repository {place} cannot be read ({type(error).__name__}: {reason(error)}); "
            f"for a file of your own, check its path: there is no {hub_id} here"
        ) from error
    wanted = file or "weights that jaxclip reads"
    if any(isinstance(error, LocalEntryNotFoundError) for error in missing):
        raise InputError(f"Hugging Face's hub cannot be reached, and its cache has no {wanted} of {place}")
    raise InputError(f"Hugging Face repository {place} has no {wanted}")


def _download(url: str) -> Path:
    try:
        name = url.rsplit("/", 1)[-1][-100:]  # signed URLs are longer than a file's name can be
        path = cache_folder("downloads", hashlib.sha256(url.encode()).hexdigest()[:16], name)
        if path.is_file():
            return path
        with urllib.request.urlopen(url, timeout=60) as response, new_file(path, "wb") as file:
            length = response.headers.get("Content-Length")
            total = None if length is None else int(length)
            with progress(f"download {path.name}", total=total, unit="bytes") as advance:
                while piece := response.read(1 << 20):
                    advance(file.write(piece))
            if total not in (None, file.tell()):
                raise InputError(f"{url} was cut off after {file.tell():,} of {total:,} bytes: try again")
    except InputError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: what is no URL
        raise InputError(
            f"{url} cannot be downloaded ({reason(error)}): download it by hand and give its path"
        ) from error
    return path


def _open_file(path: Path) -> tuple[dict[str, tuple[int, ...]], Callable[[str], np.ndarray]]:
    """Chooses the reader by what the file is, not by what it is called."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise InputError(f"{path} is empty: download it again")
    if head[4:9] == b"\0\0\0\0{":  # first of all: the header's length before it may be any bytes, such as a pickle's
        return _open_safetensors(path)
    if head.lstrip()[:1] == b"<":
        raise InputError(f"{path} is a web page (HTML or XML), not weights: download the file itself")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{path} is a Git LFS pointer, not weights: run `git lfs pull`, or download the file")
    if head.startswith(b"PK") or head.startswith(b"\x80"):
        return _open_torch(path)
    raise InputError(f"{path} is neither a safetensors nor a PyTorch file: it begins with {head[:8]!r}")


def _open_safetensors(path: Path) -> tuple[dict[str, tuple[int, ...]], Callable[[str], np.ndarray]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"{path} is truncated or corrupt ({error}): download it again") from error

    def read(name: str) -> np.ndarray:
        # Opened anew each time, so that the pages of the tensors already read do not stay mapped.
        try:
            with safe_open(path, "np") as file:
                tensor = file.get_tensor(name)
                if not jnp.issubdtype(tensor.dtype, jnp.floating):
                    raise TypeError(f"it holds {tensor.dtype}")
                with np.errstate(over="ignore"):  # which `fill` finds
                    return np.asarray(tensor, np.float32)
        except Exception as error:  # such as the AttributeError of a type that NumPy does not have
            raise _unreadable(path, name, error) from error

    return shapes, read


def _open_torch(path: Path) -> tuple[dict[str, tuple[int, ...]], Callable[[str], np.ndarray]]:
    try:
        import torch
    except ImportError:
        raise InputError(
            f"{path} is a PyTorch file: `pip install jaxclip[torch]` to read it, or use safetensors"
        ) from None
    import pickle

    try:
        if zipfile.is_zipfile(path) and any(n.endswith("/constants.pkl") for n in zipfile.ZipFile(path).namelist()):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated; OpenAI's archives remain
                state = dict(torch.jit.load(path, map_location="cpu").state_dict())
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is refused: it is no plain file of weights (its pickle asks to run other code, or is corrupt). "
            "Ask its author for safetensors, or for a state dict"
        ) from error
    except Exception as error:  # PyTorch raises whatever its parsers meet in a damaged file
        raise InputError(f"{path} is truncated or corrupt ({reason(error)}): download it again") from error
    for key in ("state_dict", "model_state_dict", "model"):  # training checkpoints wrap the weights
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    state = {k: v for k, v in state.items() if isinstance(k, str)} if isinstance(state, dict) else {}
    if not any(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path} holds no state dict (a dictionary of tensors by name)")
    prefix = "module." if all(name.startswith("module.") for name in state) else ""  # DistributedDataParallel
    tensors = {k.removeprefix(prefix): v for k, v in state.items() if isinstance(v, torch.Tensor)}
    del state

    def read(name: str) -> np.ndarray:
        tensor = tensors.pop(name).detach()
        try:
            if not tensor.is_floating_point():
                raise TypeError(f"it holds {tensor.dtype}")
            array = np.array(tensor.to(torch.float32).numpy())
            storage = tensor.untyped_storage()
        except Exception as error:  # sparse, quantized, without data: each its own
            raise _unreadable(path, name, error) from error
        if storage.resizable() and storage.nbytes() == tensor.nbytes:
            storage.resize_(0)  # a TorchScript module would hold on to it
        return array

    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}, read


def _unreadable(path: Path, name: str, error: Exception) -> InputError:
    return InputError(f"{path}: tensor {name} cannot be read ({reason(error)}): save it as a dense array of floats")
