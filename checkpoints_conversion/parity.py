"""Parity at full size: `python -m checkpoints_conversion.parity` makes the README's table.

For each architecture the reference library's own factory builds the model, every parameter and buffer is drawn at
random, the library saves it in its own format, jaxclip converts it, and both encode the same pictures and sentences.
"""

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tyro

import jaxclip
from checkpoints_conversion import reference
from checkpoints_conversion.convert import convert
from checkpoints_conversion.verify import Difference, compare, inputs
from jaxclip.config import ModelConfig, ResNet, ViT
from jaxclip.files import new_file, replace_section
from jaxclip.preprocess import decode, preprocess
from jaxclip.registry import model_config

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT.parent / "shared" / "data" / "imagenet_samples"
RESULTS = Path(__file__).parent / "parity.json"


@dataclasses.dataclass(frozen=True)
class Case:
    """One model to compare.

    Attributes:
        library: Whose model it is and in whose format it is saved: ``open_clip``, ``openai`` (a half-precision
            TorchScript archive), ``huggingface``, ``timm`` or ``torchvision``.
        name: The library's name of the architecture; for Hugging Face ours, whose configuration it is built from.
        model: jaxclip's name; None where the description beside the weights says it.
    """

    library: str
    name: str
    model: str | None

    @property
    def label(self) -> str:
        """A readable name, unique among the cases."""
        return f"{self.library} {self.name}"


CASES = [
    *(
        Case("open_clip", name, name)
        for name in ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14", "ViT-g-14", "RN50", "RN101",
                     "RN50x4", "RN50x16", "RN50x64")
    ),
    *(Case("openai", name, name) for name in ("ViT-B-32-quickgelu", "RN50-quickgelu")),
    *(Case("huggingface", name, None) for name in ("ViT-B-32-quickgelu", "ViT-B-16-quickgelu", "ViT-L-14-quickgelu")),
    *(Case("timm", name, None) for name in ("resnet18", "resnet50", "resnet101", "vit_base_patch32_224",
                                            "vit_base_patch16_224", "vit_large_patch16_224", "vit_large_patch14_224",
                                            "vit_base_patch16_clip_quickgelu_224")),
    *(Case("torchvision", name, name) for name in ("resnet34", "resnet50", "resnet101", "vit_b_32", "vit_b_16",
                                                   "vit_l_16")),
    *(Case("huggingface", name, None) for name in ("resnet18", "resnet50", "resnet101", "vit_b_32", "vit_b_16",
                                                   "vit_l_16")),
]  # fmt: skip
TOLERANCE = 1e-5
"""The relative error allowed in float32."""


def build_and_save(case: Case, folder: Path, seed: int) -> tuple[Any, Path]:
    """The library's model with random weights, and the path of the file or folder it was saved to."""
    import torch

    if case.library in ("open_clip", "openai"):
        import open_clip

        module = open_clip.create_model(case.name, pretrained=None).eval()
        reference.randomize(module, seed)
        if case.library == "openai":
            module.half().float()  # as the archive will hold it
            return module, _save_archive(module, folder / "archive.pt")
        path = folder / "open_clip_model.pt"
        torch.save({"epoch": 1, "name": case.name, "state_dict": module.state_dict()}, path)
        return module, path
    if case.library == "timm":
        import timm

        module = timm.create_model(case.name, pretrained=False).eval()
        reference.randomize(module, seed)
        timm.models.save_for_hf(module, str(folder / "timm"))
        return module, folder / "timm"
    if case.library == "torchvision":
        import torchvision

        module = getattr(torchvision.models, case.name)().eval()
        reference.randomize(module, seed)
        torch.save(module.state_dict(), folder / "torchvision.pth")
        return module, folder / "torchvision.pth"
    cfg, source_format = _hf_config(case.name)
    module = reference.build(cfg, source_format)
    reference.randomize(module, seed)
    module.save_pretrained(folder / "hf")  # type: ignore[operator]
    return module, folder / "hf"


def _hf_config(name: str) -> tuple[ModelConfig, str]:
    """Our configuration as transformers' models can have it, and the format that they are saved in."""
    cfg = model_config(name)
    if cfg.text is not None:
        return dataclasses.replace(cfg, text=dataclasses.replace(cfg.text, pool="eos")), "hf_clip"
    if isinstance(cfg.vision, ResNet):
        return cfg, "hf_resnet"
    assert isinstance(cfg.vision, ViT)
    return dataclasses.replace(cfg, vision=dataclasses.replace(cfg.vision, norm_eps=1e-12)), "hf_vit"


def _save_archive(module: Any, path: Path) -> Path:
    """A TorchScript archive in half precision, with the integers that OpenAI's archives hold beside the weights."""
    import copy
    import warnings

    import torch

    class Archive(torch.nn.Module):
        def __init__(self, clip):
            super().__init__()
            for name, child in clip.named_children():
                setattr(self, name, child)
            for name in ("positional_embedding", "text_projection", "logit_scale"):
                self.register_parameter(name, getattr(clip, name))
            for name, value in {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}.items():
                self.register_buffer(name, torch.tensor(value))

        def forward(self, x):
            return self.visual(x)  # type: ignore[operator]

    size = module.visual.image_size
    size = size if isinstance(size, int) else size[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive = torch.jit.trace(
            Archive(copy.deepcopy(module)).eval(), torch.zeros(1, 3, size, size), check_trace=False
        )
        state = {name: value.half() if value.is_floating_point() else value for name, value in
                 archive.state_dict().items()}  # fmt: skip
        for name, parameter in [*archive.named_parameters(), *archive.named_buffers()]:
            parameter.data = state[name]
        archive.save(str(path))
    return path


def run(case: Case, crops_of: Callable[[ModelConfig], np.ndarray], seed: int = 0) -> dict[str, list[Difference]]:
    """One case: build, randomise, save, convert, encode on both sides.

    Args:
        case: What to compare.
        crops_of: The model's configuration → uint8 pictures [n, s, s, 3].
        seed: Of the random weights.

    Returns:
        The differences of ``float32`` and ``bfloat16``.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        module, path = build_and_save(case, folder, seed)
        config = convert(path, case.model, folder / "converted")
        crops = crops_of(config)
        theirs = reference.features(module, config.source["format"], *inputs(config, crops))
        del module  # the largest models fit into 24 GB once, not thrice
        return {
            dtype: compare(jaxclip.load_model(folder / "converted", dtype=dtype), crops, theirs)
            for dtype in ("float32", "bfloat16")
        }


def real_crops(config: ModelConfig, n: int = 8) -> np.ndarray:
    """``n`` of the 1,000 real ImageNet pictures of ``../shared/data/imagenet_samples``, evenly spaced."""
    files = sorted(SAMPLES.glob("*.JPEG"))
    return np.stack([preprocess(decode(file), config.preprocess) for file in files[:: len(files) // n][:n]])


def table(results: dict[str, dict]) -> str:
    """The Markdown table of all results."""
    lines = [
        "| library and architecture | what | relative error, float32 | allowed | cosine, float32 | cosine, bfloat16 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for case in CASES:
        for single, half in zip(
            *(results.get(case.label, {}).get(d, []) for d in ("float32", "bfloat16")), strict=True
        ):
            lines.append(
                f"| {case.label} | {single['what']} | {single['relative']:.1e} | {TOLERANCE:.0e} "
                f"| {single['cosine']:.7f} | {half['cosine']:.5f} |"
            )
    return "\n".join(lines)


def main(only: str = "") -> None:
    """Run the cases (all that have no result yet), keep their results, and put the table into the README.

    Args:
        only: Run only the cases whose label contains this, results or not.
    """
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for case in CASES:
        if only not in case.label or (not only and case.label in results):
            continue
        differences = run(case, real_crops)
        results[case.label] = {dtype: [dataclasses.asdict(d) for d in ds] for dtype, ds in differences.items()}
        for dtype, ds in differences.items():
            for d in ds:
                print(
                    f"{case.label:45} {dtype:9} {d.what:6} relative {d.relative:.2e} cosine {d.cosine:.8f}", flush=True
                )
        with new_file(RESULTS) as file:
            json.dump(results, file, indent=1)
            file.write("\n")
    replace_section(ROOT / "README.md", "parity", table(results))


if __name__ == "__main__":
    tyro.cli(main)
