"""From the JSON that stands beside foreign weights (Hugging Face's, timm's, open_clip's) to a ModelConfig."""

import re
from typing import Any, get_args

from jaxclip import config
from jaxclip.config import ModelConfig, Preprocess
from jaxclip.errors import InputError

_HF_ACTIVATIONS: dict[str, config.Activation] = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
_PIL_FILTERS = {2: "bilinear", 3: "bicubic"}
_TIMM_WIDTHS = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
_RESNETS: dict[str, tuple[tuple[int, ...], config.Block]] = {
    "resnet18": ((2, 2, 2, 2), "basic"),
    "resnet34": ((3, 4, 6, 3), "basic"),
    "resnet50": ((3, 4, 6, 3), "bottleneck"),
    "resnet101": ((3, 4, 23, 3), "bottleneck"),
    "resnet152": ((3, 8, 36, 3), "bottleneck"),
}


def describe(configs: dict[str, Any], name: str) -> ModelConfig | None:
    """The configuration that a repository's JSON files describe; None when they describe none.

    Args:
        configs: File name → parsed JSON, as :attr:`checkpoints_conversion.sources.Weights.configs`.
        name: Becomes the configuration's name.

    Raises:
        InputError: They describe a model that jaxclip has not, or are not what these libraries write.
    """
    if "open_clip_config.json" in configs:
        return config.from_open_clip(configs["open_clip_config.json"], name, "open_clip_config.json")
    data = configs.get("config.json", {})
    file = "preprocessor_config.json"
    pixels = configs.get(file, {})
    if not pixels and "image_processor" in configs.get("processor_config.json", {}):  # as transformers 5 saves CLIP's
        file = "processor_config.json"
        pixels = configs[file]["image_processor"]
    if "architecture" in data and "pretrained_cfg" in data:
        return config.checked("config.json", lambda: _timm(data, name))
    if "model_type" not in data:
        return None
    if data["model_type"] not in list(_HF_MODELS):
        raise InputError(f"config.json: model_type {data['model_type']!r} is not one of {', '.join(_HF_MODELS)}")
    where = "config.json" + (f" with {file}" if pixels else "")
    return config.checked(where, lambda: _HF_MODELS[data["model_type"]](data, pixels, name))


def _hf_clip(data: dict[str, Any], pixels: dict[str, Any], name: str) -> ModelConfig:
    v, t = data["vision_config"], data["text_config"]
    vision = config.ViT(
        image_size=v.get("image_size", 224),
        patch_size=v.get("patch_size", 32),
        width=v.get("hidden_size", 768),
        layers=v.get("num_hidden_layers", 12),
        heads=v.get("num_attention_heads", 12),
        mlp_width=v.get("intermediate_size", 3072),
        output_dim=data.get("projection_dim", 512),
        activation=_activation(v.get("hidden_act", "quick_gelu")),
        norm_eps=v.get("layer_norm_eps", 1e-5),
    )
    eos_id = t.get("eos_token_id", 49407)
    text = config.Text(
        context_length=t.get("max_position_embeddings", 77),
        vocab_size=t.get("vocab_size", 49408),
        width=t.get("hidden_size", 512),
        layers=t.get("num_hidden_layers", 12),
        heads=t.get("num_attention_heads", 8),
        mlp_width=t.get("intermediate_size", 2048),
        output_dim=data.get("projection_dim", 512),
        activation=_activation(t.get("hidden_act", "quick_gelu")),
        norm_eps=t.get("layer_norm_eps", 1e-5),
        # transformers pools at the largest id where a config still has the wrong end-of-text id, 2
        pool="argmax" if eos_id == 2 else "eos",
        eos_id=49407 if eos_id == 2 else eos_id,
    )
    default = Preprocess(vision.image_size, convert_rgb="over_white", crop_rounding="down")
    return ModelConfig(name, vision, _hf_pixels(pixels, default), text)


def _hf_vit(data: dict[str, Any], pixels: dict[str, Any], name: str) -> ModelConfig:
    if not data.get("qkv_bias", True):
        raise InputError("qkv_bias false is not supported")
    vision = config.ViT(
        image_size=data.get("image_size", 224),
        patch_size=data.get("patch_size", 16),
        width=data.get("hidden_size", 768),
        layers=data.get("num_hidden_layers", 12),
        heads=data.get("num_attention_heads", 12),
        mlp_width=data.get("intermediate_size", 3072),
        activation=_activation(data.get("hidden_act", "gelu")),
        norm_eps=data.get("layer_norm_eps", 1e-12),
        patch_bias=True,
        pre_norm=False,
    )
    default = Preprocess(
        vision.image_size, "squash", None, "bilinear", "before", config.INCEPTION_MEAN, config.INCEPTION_STD
    )
    return ModelConfig(name, vision, _hf_pixels(pixels, default), num_classes=_hf_classes(data))


def _hf_resnet(data: dict[str, Any], pixels: dict[str, Any], name: str) -> ModelConfig:
    width, block = data.get("embedding_size", 64), data.get("layer_type", "bottleneck")
    if block not in get_args(config.Block):
        raise InputError(f"layer_type {block!r} is not supported, only {get_args(config.Block)}")
    for key, wanted in {
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "hidden_sizes": [width * (1 if block == "basic" else 4) * 2**i for i in range(len(data["depths"]))],
    }.items():
        if data.get(key, wanted) != wanted:
            raise InputError(f"{key} {data[key]!r} is not supported, only {wanted!r}")
    vision = config.ResNet(224, tuple(data["depths"]), width, data.get("downsample_in_bottleneck", False), block)
    default = Preprocess(
        224, "shortest", 256, "bicubic", "before", config.IMAGENET_MEAN, config.IMAGENET_STD, crop_rounding="down"
    )
    return ModelConfig(name, vision, _hf_pixels(pixels, default), num_classes=_hf_classes(data))


_HF_MODELS = {"clip": _hf_clip, "vit": _hf_vit, "resnet": _hf_resnet}


def _hf_classes(data: dict[str, Any]) -> int:
    """Which transformers writes down unless they are the two of its default; the weights know best."""
    return data["num_labels"] if "num_labels" in data else len(data.get("id2label", "01"))


def _hf_pixels(data: dict[str, Any], default: Preprocess) -> Preprocess:
    """Reads an image processor's JSON in either of its two spellings of a size; refuses what is not modelled."""
    if not data:
        return default
    for key, only in {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}.items():
        if abs(data.get(key, only) - only) > 1e-6:
            raise InputError(f"{key} {data[key]} is not supported, only {only}")
    crops = data.get("do_center_crop", default.resize == "shortest")
    crop, size = _side(data.get("crop_size", default.size)), data.get("size", default.size)
    resize_to: int | None
    if isinstance(size, dict) and "height" in size:
        resize, resize_to, final = "squash", None, _side(size)
        if crops and crop != final:
            raise InputError(f"a crop of {crop} from a square of {final} pixels is not supported")
    else:
        shortest = size["shortest_edge"] if isinstance(size, dict) else size
        if "crop_pct" in data and shortest < 384:  # ConvNextImageProcessor, which ResNets use: crops to ``size``
            resize, resize_to, final = "shortest", int(shortest / data["crop_pct"]), shortest
        elif "crop_pct" in data:  # or, from 384 on, squashes
            resize, resize_to, final = "squash", None, shortest
        elif crops:
            resize, resize_to, final = "shortest", shortest, crop
        elif isinstance(size, dict) or default.resize == "shortest":
            raise InputError("a shortest edge without do_center_crop is not supported: no picture is square")
        else:
            resize, resize_to, final = "squash", None, shortest
    resample = data.get("resample", {"bilinear": 2, "bicubic": 3}[default.interpolation])
    if resample not in _PIL_FILTERS:
        raise InputError(f"resample {resample} is neither bilinear (2) nor bicubic (3)")
    return Preprocess(
        size=final,
        resize=resize,  # type: ignore[arg-type]
        resize_to=None if resize_to == final else resize_to,
        interpolation=_PIL_FILTERS[resample],  # type: ignore[arg-type]
        convert_rgb=default.convert_rgb,
        crop_rounding=default.crop_rounding,
        mean=tuple(data.get("image_mean", default.mean)),
        std=tuple(data.get("image_std", default.std)),
    )


def _side(size: int | dict[str, int]) -> int:
    """The side of a square that is given as a number, or by height and width."""
    if isinstance(size, int):
        return size
    if size["height"] != size["width"]:
        raise InputError(f"{size['height']} x {size['width']} pixels are not square, which is not supported")
    return size["height"]


def _timm(data: dict[str, Any], name: str) -> ModelConfig:
    architecture, pixels = data["architecture"], data["pretrained_cfg"]
    size = pixels["input_size"][-1]
    usual = {
        "num_classes": data.get("num_classes"),
        "in_chans": 3,
        "img_size": size,
        "global_pool": "avg" if architecture in _RESNETS else "token",
    }
    options = {**(data.get("model_args") or {}), "global_pool": data.get("global_pool", usual["global_pool"])}
    for key, value in options.items():
        if key not in usual or value not in (usual[key], (size, size), [size, size]):
            raise InputError(f"timm's {key} = {value!r} is not supported")
    vision: config.Vision
    if architecture in _RESNETS:
        depths, block = _RESNETS[architecture]
        vision = config.ResNet(size, depths, block=block)
    elif match := re.fullmatch(r"vit_(\w+?)_patch(\d+)(_clip)?(_quickgelu)?_(\d+)", architecture):
        kind, patch, clip, quick, _ = match.groups()
        if kind not in _TIMM_WIDTHS:
            raise InputError(f"timm architecture {architecture!r} is not supported")
        width, layers, heads = _TIMM_WIDTHS[kind]
        vision = config.ViT(
            image_size=size,
            patch_size=int(patch),
            width=width,
            layers=layers,
            heads=heads,
            mlp_width=4 * width,
            activation="quick_gelu" if quick else "gelu",
            norm_eps=1e-5 if clip else 1e-6,
            patch_bias=not clip,
            pre_norm=bool(clip),
        )
    else:
        raise InputError(f"timm architecture {architecture!r} is not supported")
    if pixels.get("crop_mode", "center") not in ("center", "squash"):
        raise InputError(f"crop_mode {pixels['crop_mode']!r} is not supported")
    squash = pixels.get("crop_mode") == "squash"
    resize_to = int(size / pixels.get("crop_pct", 0.875))
    if squash and resize_to != size:
        raise InputError("crop_mode squash with a crop_pct below 1 is not supported")
    preprocess = Preprocess(
        size,
        "squash" if squash else "shortest",
        None if resize_to == size else resize_to,
        pixels.get("interpolation", "bicubic"),
        "before",
        tuple(pixels["mean"]),
        tuple(pixels["std"]),
    )
    return ModelConfig(name, vision, preprocess, num_classes=data.get("num_classes", pixels.get("num_classes", 1000)))


def _activation(name: str) -> config.Activation:
    if name not in _HF_ACTIVATIONS:
        raise InputError(f"hidden_act {name!r} is not one of {', '.join(_HF_ACTIVATIONS)}")
    return _HF_ACTIVATIONS[name]
