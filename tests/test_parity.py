"""Converted weights compute what the reference library computes, with random numbers in every parameter and buffer.

Small configurations cover every variant of the towers; full-size models cover every architecture of the registry. The
slow ones run with `pytest -m slow tests/test_parity.py`; the README's table comes from the same cases.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

for package in ("torch", "torchvision", "open_clip", "timm", "transformers"):
    pytest.importorskip(package, reason="the reference libraries are the extra [parity]")

import jaxclip
from checkpoints_conversion import parity, reference, tables
from checkpoints_conversion.convert import convert, fill
from checkpoints_conversion.sources import open_weights
from checkpoints_conversion.verify import Difference, compare, inputs, verify
from jaxclip import checkpoint, config
from jaxclip.errors import InputError

FAST = ("open_clip ViT-B-32", "openai RN50-quickgelu", "torchvision vit_b_32")


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=() if c.label in FAST else pytest.mark.slow, id=c.label) for c in parity.CASES],
)
def test_full_size(case: parity.Case, imagenet_samples: list[Path]) -> None:
    """Features of 8 real pictures and 4 sentences agree: to float32 rounding, and to bfloat16's in direction."""
    results = parity.run(case, parity.real_crops)
    for d in results["float32"]:
        assert d.relative <= parity.TOLERANCE, f"{d.what}: relative error {d.relative:.2e}"
        assert d.cosine >= 0.99999, f"{d.what}: cosine {d.cosine:.7f}"
    for d in results["bfloat16"]:
        assert d.cosine >= 0.999, f"{d.what} in bfloat16: cosine {d.cosine:.5f}"


TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2}
VIT = {"image_size": 64, "patch_size": 16, "width": 96, "head_width": 24, "layers": 3}
VARIANTS = {
    "plain": {"vision_cfg": VIT, "text_cfg": TEXT},
    "quick_gelu": {"vision_cfg": VIT, "text_cfg": TEXT, "quick_gelu": True},
    "average": {"vision_cfg": VIT | {"pool_type": "avg"}, "text_cfg": TEXT},
    "norm after pool": {"vision_cfg": VIT | {"pool_type": "avg", "final_ln_after_pool": True}, "text_cfg": TEXT},
    "attentional pool": {
        "vision_cfg": VIT | {"attentional_pool": True, "attn_pooler_queries": 9, "attn_pooler_heads": 6},
        "text_cfg": TEXT,
    },
    "attentional pool, whose own norms keep their epsilon": {
        "vision_cfg": VIT | {"attentional_pool": True, "norm_kwargs": {"eps": 0.1}},
        "text_cfg": TEXT,
    },
    "layer scale, no pre-norm": {
        "vision_cfg": VIT | {"ls_init_value": 1e-4, "no_ln_pre": True, "mlp_ratio": 3.3},
        "text_cfg": TEXT | {"ls_init_value": 1e-4},
    },
    "bidirectional text": {
        "vision_cfg": VIT,
        "text_cfg": TEXT | {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
        "init_logit_bias": -10.0,
    },
    "text in its own module": {"vision_cfg": VIT, "text_cfg": TEXT, "custom_text": True},
    "norm epsilon": {"vision_cfg": VIT | {"norm_kwargs": {"eps": 1e-3}}, "text_cfg": TEXT},
    "resnet": {"vision_cfg": {"image_size": 64, "layers": [2, 1, 2, 1], "width": 16}, "text_cfg": TEXT},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_open_clip_variant(name: str, tmp_path: Path) -> None:
    """Each switch of open_clip's config means to us what it means to open_clip, whose own classes read it here."""
    import open_clip
    from safetensors.torch import save_file

    cfg = {"embed_dim": 48, **VARIANTS[name]}
    kwargs = {k: v for k, v in cfg.items() if k != "custom_text"}
    module = (open_clip.CustomTextCLIP if cfg.get("custom_text") else open_clip.CLIP)(**kwargs).eval()
    reference.randomize(module, seed=1)
    (tmp_path / "config.json").write_text(json.dumps(cfg))
    save_file(module.state_dict(), tmp_path / "open_clip_model.safetensors")
    convert(tmp_path / "open_clip_model.safetensors", str(tmp_path / "config.json"), tmp_path / "out")
    model = jaxclip.load_model(tmp_path / "out")
    for d in agree(model, module, "open_clip"):
        assert d.relative < 5e-6, f"{d.what}: relative error {d.relative:.2e}"


VISION = config.ViT(64, 16, 96, 3, 4, 300, 48)
SUPERVISED = dataclasses.replace(VISION, output_dim=None, pre_norm=False, patch_bias=True)
WORDS = config.Text(77, 49408, 64, 2, 4, 256, 48, "quick_gelu")
PIXELS = config.Preprocess(64)


@pytest.mark.parametrize(
    "cfg",
    [
        config.ModelConfig("clip", dataclasses.replace(VISION, activation="quick_gelu"), PIXELS, WORDS),
        config.ModelConfig("clip, eos", VISION, PIXELS, dataclasses.replace(WORDS, pool="eos", activation="gelu_tanh")),
        config.ModelConfig("vit", dataclasses.replace(SUPERVISED, norm_eps=1e-3), PIXELS, num_classes=11),
        config.ModelConfig("resnet", config.ResNet(64, (2, 1, 2, 1), 16), PIXELS, num_classes=11),
        config.ModelConfig("resnet v1", config.ResNet(64, (2, 1, 2, 1), 16, True), PIXELS, num_classes=11),
        config.ModelConfig("resnet basic", config.ResNet(64, (2, 1, 2), 16, block="basic"), PIXELS, num_classes=11),
    ],
    ids=lambda cfg: cfg.name,
)
def test_hugging_face_folder(cfg: config.ModelConfig, tmp_path: Path) -> None:
    """A folder that transformers wrote says itself what it is; ``verify`` reads the same folder independently."""
    source_format = "hf_clip" if cfg.text else "hf_vit" if isinstance(cfg.vision, config.ViT) else "hf_resnet"
    module = reference.build(cfg, source_format)
    reference.randomize(module, seed=2)
    module.save_pretrained(tmp_path / "hf")
    read = convert(tmp_path / "hf", None, tmp_path / "out")
    if not isinstance(cfg.vision, config.ResNet):  # whose config.json has no image size
        assert read.vision == cfg.vision
    assert read.text == cfg.text
    model = jaxclip.load_model(tmp_path / "out")
    for d in agree(model, module, source_format):
        assert d.relative < 5e-6, f"{d.what}: relative error {d.relative:.2e}"
    for d in verify(tmp_path / "hf", tmp_path / "out"):
        assert d.relative < 5e-6 and d.cosine > 0.99999


def test_transformers_writes_no_labels_of_two(tmp_path: Path) -> None:
    """Nor anything else that is its default: two classes are read from the head."""
    import transformers

    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    module = transformers.ViTForImageClassification(transformers.ViTConfig(**small, image_size=32)).eval()
    reference.randomize(module, seed=5)
    module.save_pretrained(tmp_path / "hf")
    assert "id2label" not in json.loads((tmp_path / "hf" / "config.json").read_text())
    assert convert(tmp_path / "hf", None, tmp_path / "out").num_classes == 2
    for d in agree(jaxclip.load_model(tmp_path / "out"), module, "hf_vit"):
        assert d.relative < 5e-6, f"{d.what}: relative error {d.relative:.2e}"


def test_the_pixels_of_a_saved_processor(tmp_path: Path) -> None:
    """transformers 5 writes CLIP's image processor into processor_config.json, and no file of its own."""
    import transformers

    crop = {"size": {"shortest_edge": 80}, "crop_size": {"height": 64, "width": 64}}
    pixels = transformers.CLIPImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6], **crop)
    cfg = config.ModelConfig("clip", VISION, PIXELS, dataclasses.replace(WORDS, activation="gelu"))
    reference.build(cfg, "hf_clip").save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "processor_config.json").write_text(json.dumps({"image_processor": pixels.to_dict()}))
    found = convert(tmp_path / "hf", None, tmp_path / "out").preprocess
    assert (found.size, found.resize_to, found.mean, found.std) == (64, 80, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_torchvisions_published_vits(tmp_path: Path) -> None:
    """They are older than torchvision 0.13, whose loader renames the MLP's linear maps: so do conversion and verify."""
    from safetensors.torch import save_file

    cfg = config.ModelConfig("vit", SUPERVISED, PIXELS, num_classes=11)
    module = reference.build(cfg, "torchvision_vit")
    reference.randomize(module, seed=4)
    renamed = {
        name.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): tensor
        for name, tensor in module.state_dict().items()
    }
    assert set(renamed) != set(module.state_dict())
    reference.build(cfg, "torchvision_vit").load_state_dict(renamed)  # torchvision knows the names
    save_file(renamed, tmp_path / "old.safetensors")
    weights = open_weights(str(tmp_path / "old.safetensors"))
    arrays = fill(cfg, tables.rows("torchvision_vit", cfg, weights.shapes), weights)
    checkpoint.save(tmp_path / "out", cfg, arrays)
    loaded = reference.build(cfg, "torchvision_vit")
    reference.load(loaded, open_weights(str(tmp_path / "old.safetensors")))
    for theirs in (module, loaded):
        for d in agree(jaxclip.load_model(tmp_path / "out"), theirs, "torchvision_vit"):
            assert d.relative < 5e-6, f"{d.what}: relative error {d.relative:.2e}"


@pytest.mark.parametrize(
    "options", [{"global_pool": "avg"}, {"act_layer": "quick_gelu"}, {"num_heads": 6}, {"init_values": 0.1}]
)
def test_timm_options_are_refused(options: dict, tmp_path: Path) -> None:
    """timm writes what a model was made with, under names that shapes do not show: another model, without an error."""
    import timm

    module = timm.create_model("vit_tiny_patch16_224", num_classes=7, **options)
    timm.models.save_for_hf(module, tmp_path / "timm", model_args=options)
    with pytest.raises(InputError, match=f"timm's {next(iter(options))} = "):
        convert(tmp_path / "timm", None, tmp_path / "out")


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_224"])
def test_timm_hub_folder(name: str, tmp_path: Path) -> None:
    """A folder in the layout of timm's hub repositories, with another number of classes than ImageNet's."""
    import timm

    module = timm.create_model(name, num_classes=7).eval()
    reference.randomize(module, seed=3)
    timm.models.save_for_hf(module, tmp_path / "timm")
    convert(tmp_path / "timm", None, tmp_path / "out")
    model = jaxclip.load_model(tmp_path / "out")
    assert model.head is not None and model.head[0].shape == (7, module.embed_dim)
    for d in agree(model, module, "timm_vit"):
        assert d.relative < 1e-5, f"{d.what}: relative error {d.relative:.2e}"


def test_comparison_sees_a_wrong_activation(tmp_path: Path) -> None:
    """The comparison can fail: GELU in place of QuickGELU is seen, in both towers."""
    import open_clip
    from safetensors.torch import save_file

    cfg = {"embed_dim": 48, **VARIANTS["quick_gelu"]}
    module = open_clip.CLIP(**cfg).eval()
    reference.randomize(module, seed=1)
    (tmp_path / "config.json").write_text(json.dumps(cfg | {"quick_gelu": False}))
    save_file(module.state_dict(), tmp_path / "model.safetensors")
    convert(tmp_path / "model.safetensors", str(tmp_path / "config.json"), tmp_path / "out")
    model = jaxclip.load_model(tmp_path / "out")
    assert min(d.relative for d in agree(model, module, "open_clip")) > 1e-4


def agree(model, module, source_format: str) -> list[Difference]:
    """Both sides on noise: what is compared is arithmetic, and noise excites every frequency of the patch embedding."""
    size = model.config.preprocess.size
    crops = np.random.default_rng(0).integers(0, 256, (4, size, size, 3), dtype=np.uint8)
    return compare(model, crops, reference.features(module, source_format, *inputs(model.config, crops)))
