"""The registry says of each checkpoint what its publisher says."""

import collections
import csv
import dataclasses
import json
import math
import re

import pytest
from conftest import SHARED

from jaxclip import config, registry
from jaxclip.config import CLIPResNet, ModelConfig, Preprocess, ResNet, ViT
from jaxclip.data import read_json
from jaxclip.errors import InputError

ZERO_SHOT = [entry for entry in registry.table() if entry.group == "zero-shot"]
SUPERVISED = [entry for entry in registry.table() if entry.group == "supervised"]
# Crabbé et al. 2024: the models that are compared
PAPER = {
    "RN50": {"openai", "yfcc15m", "cc12m"},
    "RN101": {"openai", "yfcc15m"},
    "ViT-B-32": {"openai", "laion400m", "laion2b", "datacomp"},
    "ViT-B-16": {"openai", "laion400m", "laion2b", "datacomp"},
    "ViT-L-14": {"openai", "laion400m", "laion2b", "datacomp"},
}


def _label(entry: registry.Entry) -> str:
    return entry.name


# --- what the paper asks for ------------------------------------------------------------------------------------------


def test_paper_groups():
    """17 zero-shot CLIPs, each also fine-tuned, one less robust CLIP, five supervised backbones: no more, no less."""
    found: dict[str, list] = collections.defaultdict(list)
    for entry in registry.table():
        if entry.paper:
            found[entry.group].append(entry)
    assert {group: len(entries) for group, entries in found.items()} == {
        "zero-shot": 17,
        "less-robust": 1,
        "fine-tuned": 17,
        "supervised": 5,
    }
    for backbone, training in PAPER.items():
        tags = [e.name.split("/")[1] for e in found["zero-shot"] if e.backbone == backbone]
        assert len(tags) == len(training) and {tag.split("_")[0] for tag in tags} == training
    assert {e.name for e in found["fine-tuned"]} == {e.name + "_ft_in1k" for e in found["zero-shot"]}
    assert {e.backbone for e in found["supervised"]} == set(PAPER)
    assert [(e.backbone, e.training_set) for e in found["less-robust"]] == [("RN50", "ImageNet-Captions")]


def test_table_is_in_groups():
    """A group that came in two pieces would be printed twice."""
    groups = [entry.group for entry in registry.table()]
    assert groups == sorted(groups, key=groups.index)
    assert registry.names() == [entry.name for entry in registry.table()]


@pytest.mark.parametrize("entry", registry.table(), ids=_label)
def test_entry_is_complete(entry):
    """A checkpoint has a place and a licence, or a note on how to make it; a digest only of a place."""
    if entry.source is None:
        assert entry.note and re.search("jaxclip (train|finetune)", entry.note)
        assert entry.sha256 is entry.mirror is entry.licence is None
    else:
        assert entry.licence
        for place in filter(None, (entry.source, entry.mirror)):
            assert re.fullmatch(r"https://[\w./-]+\.(pt|pth)|hf-hub:[\w.-]+/[\w.-]+(:[\w.]+\.safetensors)?", place)
    assert entry.sha256 is None or re.fullmatch("[0-9a-f]{64}", entry.sha256)


# --- open_clip --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ZERO_SHOT, ids=_label)
def test_open_clip_pretrained(entry):
    """Places, pixel statistics, filter and activation are those of open_clip's own registry."""
    open_clip = pytest.importorskip("open_clip")
    backbone, tag = entry.name.split("/")
    cfg = open_clip.pretrained.get_pretrained_cfg(backbone, tag)
    assert cfg, f"open_clip has no {entry.name}"
    hub = "hf-hub:" + cfg["hf_hub"].rstrip("/")
    places = {place.removesuffix(":open_clip_model.safetensors") for place in (entry.source, entry.mirror) if place}
    assert places == {hub, *filter(None, [cfg["url"]])}
    assert entry.activation == ("quick_gelu" if cfg.get("quick_gelu") else "gelu")
    assert (entry.pixels.mean, entry.pixels.std) == (tuple(cfg["mean"]), tuple(cfg["std"]))
    assert (entry.pixels.interpolation, entry.pixels.resize) == (cfg["interpolation"], cfg["resize_mode"])
    assert entry.pixels.convert_rgb == "after" and entry.pixels.resize_to is None


def test_openai_digests():
    """OpenAI's URLs carry the digest of the file: it must be the one that the download is checked against."""
    openai = [entry for entry in ZERO_SHOT if entry.name.endswith("/openai")]
    assert len(openai) == 9
    for entry in openai:
        assert entry.sha256 and entry.source and f"/{entry.sha256}/" in entry.source
        assert entry.activation == "quick_gelu", "every OpenAI checkpoint was trained with QuickGELU"
        assert entry.mirror and entry.mirror.endswith(":open_clip_model.safetensors"), (
            "no place that can be read without PyTorch"
        )


@pytest.mark.parametrize("entry", ZERO_SHOT, ids=_label)
def test_published_results(entry):
    """The row of open_clip's results is there; of a row with and one without QuickGELU it is the better."""
    path = SHARED / "robustness" / "openclip_results.csv"
    if not path.is_file():
        pytest.skip(f"published results are missing: {path}")
    with path.open() as file:
        accuracy = {(row["name"], row["pretrained"]): float(row["ImageNet 1k"]) for row in csv.DictReader(file)}
    backbone, tag = entry.name.split("/")
    twins = [(name, tag) for name in (backbone, backbone + "-quickgelu") if (name, tag) in accuracy]
    assert entry.results in twins
    assert accuracy[entry.results] == max(accuracy[row] for row in twins)


CLIPS = [name for name, data in read_json("architectures.json").items() if "embed_dim" in data]


@pytest.mark.parametrize("name", [*CLIPS, *(name + "-quickgelu" for name in CLIPS)])
def test_open_clip_architectures(name):
    """Every width and depth is that of open_clip's model config of the same name."""
    open_clip = pytest.importorskip("open_clip")
    theirs = open_clip.get_model_config(name)
    if theirs is None:  # open_clip has no g-14-quickgelu
        assert name == "ViT-g-14-quickgelu"
        theirs = {**open_clip.get_model_config("ViT-g-14"), "quick_gelu": True}
    assert registry.model_config(name) == config.from_open_clip(theirs, name)


def test_clip_widths():
    """The representations' widths that the paper gives."""
    widths = {"RN50": 1024, "RN101": 512, "ViT-B-32": 512, "ViT-B-16": 512, "ViT-L-14": 768}
    for entry in ZERO_SHOT:
        if entry.paper:
            model = registry.model_config(entry.name)
            assert isinstance(model.vision, CLIPResNet if entry.backbone.startswith("RN") else ViT)
            assert not isinstance(model.vision, ResNet) and model.text
            assert model.vision.output_dim == model.text.output_dim == widths[entry.backbone]


# --- timm and torchvision ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", [e for e in SUPERVISED if "torchvision" in e.name], ids=_label)
def test_torchvision_weights(entry):
    """URL and transform are those of torchvision's weights; a mirror is what timm says it is."""
    torchvision = pytest.importorskip("torchvision")
    architecture, tag = entry.name.split("/torchvision.")
    weights = torchvision.models.get_model_weights(architecture)[tag.upper()]
    preset = weights.transforms()
    assert entry.source == weights.url
    assert entry.pixels == Preprocess(
        size=preset.crop_size[0],
        resize_to=preset.resize_size[0],
        interpolation=preset.interpolation.value,
        convert_rgb="before",
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )
    if entry.mirror:
        timm = pytest.importorskip("timm")
        cfg = timm.get_pretrained_cfg(entry.mirror.removeprefix("hf-hub:timm/").removesuffix(":model.safetensors"))
        assert cfg.url == weights.url


@pytest.mark.parametrize("entry", [e for e in SUPERVISED if "timm" in e.name], ids=_label)
def test_timm_weights(entry):
    """Place, statistics, crop and licence are those of timm's own table."""
    timm = pytest.importorskip("timm")
    repo = entry.source.removeprefix("hf-hub:").removesuffix(":model.safetensors")
    cfg = timm.get_pretrained_cfg(repo.removeprefix("timm/"))
    assert cfg.hf_hub_id == repo and cfg.license == entry.licence.lower() and cfg.crop_mode == "center"
    assert entry.pixels == Preprocess(
        size=cfg.input_size[-1],
        resize_to=math.floor(cfg.input_size[-1] / cfg.crop_pct),
        interpolation=cfg.interpolation,
        convert_rgb="before",
        mean=cfg.mean,
        std=cfg.std,
    )


@pytest.mark.parametrize("name", ["vit_b_32", "vit_b_16", "vit_l_16", "resnet18", "resnet34", "resnet50", "resnet101"])
def test_supervised_architectures(name):
    """Depth, width, norm's epsilon and biases are those of torchvision's model of that name."""
    torch, torchvision = pytest.importorskip("torch"), pytest.importorskip("torchvision")
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name)
    ours = registry.model_config(name)
    assert ours.text is None and ours.num_classes == 1000
    if isinstance(ours.vision, ResNet):
        blocks = [getattr(theirs, f"layer{i}") for i in range(1, 5)]
        assert ours.vision.layers == tuple(map(len, blocks)) and ours.vision.width == theirs.conv1.out_channels
        basic = ours.vision.block == "basic"
        assert hasattr(blocks[1][0], "conv3") != basic and ours.vision.output_dim == theirs.fc.in_features
        assert getattr(blocks[1][0], "conv1" if basic else "conv2").stride == (2, 2) and not ours.vision.stride_in_1x1
        return
    block = theirs.encoder.layers[0]
    assert ours.vision == ViT(
        image_size=theirs.image_size,
        patch_size=theirs.patch_size,
        width=theirs.hidden_dim,
        layers=len(theirs.encoder.layers),
        heads=block.num_heads,
        mlp_width=theirs.mlp_dim,
        norm_eps=theirs.encoder.ln.eps,
        patch_bias=theirs.conv_proj.bias is not None,
        pre_norm=False,
    )


def test_vit_l_14():
    """The one architecture that torchvision has not, against timm's."""
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    with torch.device("meta"):
        theirs = timm.create_model("vit_large_patch14_224")
    ours = registry.model_config("vit_l_14").vision
    assert isinstance(ours, ViT)
    assert (ours.width, ours.layers, ours.heads) == (
        theirs.embed_dim,
        len(theirs.blocks),
        theirs.blocks[0].attn.num_heads,
    )
    assert (ours.patch_size, ours.mlp_width) == (
        theirs.patch_embed.patch_size[0],
        theirs.blocks[0].mlp.fc1.out_features,
    )
    assert ours.norm_eps == theirs.norm.eps == 1e-6


# --- model_config -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", registry.table(), ids=_label)
def test_model_config_of_every_checkpoint(entry):
    """Every entry makes a whole configuration, with its own pixels, that survives JSON."""
    model = registry.model_config(entry.name)
    assert model.name == entry.name and model.preprocess == entry.pixels
    assert model.preprocess.size == model.vision.image_size
    assert (model.text is None) == (entry.group in ("fine-tuned", "supervised")) == (model.num_classes == 1000)
    assert ModelConfig.from_json(json.loads(json.dumps(model.to_json()))) == model


def test_fine_tuned_has_the_same_encoder():
    """Fine-tuning changes weights, not the vision tower or the pixels."""
    for entry in registry.table():
        if entry.group == "fine-tuned":
            tuned = registry.model_config(entry.name)
            start = registry.model_config(entry.name.removesuffix("_ft_in1k"))
            assert dataclasses.replace(tuned, name=start.name, text=start.text, num_classes=None) == start


def test_quickgelu_twin():
    """The suffix changes both towers' activation and nothing else."""
    plain, twin = registry.model_config("ViT-B-32"), registry.model_config("ViT-B-32-quickgelu")
    assert isinstance(plain.vision, ViT) and plain.text
    assert twin.vision == dataclasses.replace(plain.vision, activation="quick_gelu")
    assert twin.text == dataclasses.replace(plain.text, activation="quick_gelu")
    assert twin.preprocess == plain.preprocess == Preprocess(224)


def test_open_clip_json(tmp_path):
    """The path of an open_clip config is as good as a name; a hub repository's, with its pixels, too."""
    model = read_json("architectures.json")["ViT-B-16"]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(model))
    assert registry.model_config(path) == dataclasses.replace(registry.model_config("ViT-B-16"), name="mine")
    pixels = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash", "interpolation": "bilinear"}
    path.write_text(json.dumps({"model_cfg": model, "preprocess_cfg": pixels}))
    assert registry.model_config(str(path)).preprocess == Preprocess(
        224, "squash", None, "bilinear", "after", (0.5,) * 3, (0.5,) * 3
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"embed_dim": 512,', "is not JSON"),
        ("[1, 2]", "not a JSON object"),
        ("{}", "not an open_clip config"),
        ("\xff\xfe", "is not JSON"),
        (None, "No such file"),
    ],
)
def test_bad_json(text, message, tmp_path):
    """A broken config is refused by name, before anything is downloaded or written."""
    path = tmp_path / "bad.json"
    if text is not None:
        path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=rf"bad\.json.*{message}"):
        registry.model_config(path)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("vit-b-32/openai", "ViT-B-32/openai"),
        ("ViT-B/32", "ViT-B-32"),
        ("ViTB32/laion400m", "ViT-B-32/laion400m_e32"),
        ("RN50/yfcc", "RN50/yfcc15m"),
        ("ViT-L-14/openai_ft", "ViT-L-14/openai_ft_in1k"),
        ("resnet-50", "resnet50"),
    ],
)
def test_suggestions(name, suggestion):
    """A near miss is answered with the name that was meant."""
    with pytest.raises(InputError, match=f"unknown model '{name}'.*{re.escape(suggestion)}"):
        registry.model_config(name)


def test_unknown_names():
    """An architecture is no checkpoint; nonsense gets no suggestion; only CLIPs have QuickGELU twins."""
    with pytest.raises(InputError, match="unknown checkpoint 'ViT-B-32'; did you mean ViT-B-32/openai"):
        registry.lookup("ViT-B-32")
    with pytest.raises(InputError, match="unknown checkpoint 'zzzzzz'; `jaxclip models` lists all"):
        registry.lookup("zzzzzz")
    with pytest.raises(InputError, match="only CLIPs have a -quickgelu form"):
        registry.model_config("resnet50-quickgelu")


def test_print_table(capsys):
    """Every name, whole, under its group."""
    registry.print_table()
    lines = capsys.readouterr().out.splitlines()
    printed = [line.strip("│ ").split("│")[0].split(" ")[0] for line in lines if line.startswith("│")]
    assert [name for name in printed if "/" in name] == registry.names()
    assert [name for name in printed if name in {e.group for e in registry.table()}] == [
        "zero-shot",
        "less-robust",
        "fine-tuned",
        "supervised",
    ]
