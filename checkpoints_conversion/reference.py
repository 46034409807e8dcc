"""The reference libraries' own models (extra ``[parity]``), built to compare with: never imported by the library."""

import re
from typing import Any

import numpy as np
import torch

from checkpoints_conversion.sources import Weights
from checkpoints_conversion.tables import is_not_parameter
from jaxclip import config
from jaxclip.config import ModelConfig
from jaxclip.errors import InputError

# Where each format's linear head is, for the representation that it reads.
_HEADS = {"hf_vit": "classifier", "hf_resnet": "classifier.1", "timm_vit": "head", "torchvision_vit": "heads.head",
          "resnet": "fc"}  # fmt: skip
BRANCH_END = re.compile(r"layer\d\.\d+\.bn3\.weight$|stages\.\d+\.layers\.\d+\.layer\.2\.normalization\.weight$")
"""The last norm of a bottleneck, in OpenAI's, timm's and torchvision's names or Hugging Face's."""


def build(cfg: ModelConfig, source_format: str) -> torch.nn.Module:
    """The reference library's model of a configuration, in evaluation mode, with whatever weights it initialises."""
    return _BUILDERS[source_format](cfg).eval()


def load(module: torch.nn.Module, weights: Weights) -> None:
    """Loads a file's tensors into a reference model, by the model's own names.

    Raises:
        InputError: A name is missing or unexpected.
    """
    if type(module).__module__.startswith("transformers."):
        _load_by_transformers(module, weights)
        return
    own = module.state_dict()
    state = {}
    for name in weights.shapes:
        if is_not_parameter(name):
            continue
        key = name if name in own else name.removeprefix("text.")
        key = key.replace(".mlp.linear_1.", ".mlp.0.").replace(".mlp.linear_2.", ".mlp.3.")  # torchvision before 0.13
        if key in own:
            state[key] = torch.from_numpy(weights.read(name)).reshape(own[key].shape)
        else:
            raise InputError(f"the reference model has no tensor {name!r}")
    missing = [name for name in own if name not in state and not is_not_parameter(name)]
    if missing:
        raise InputError(f"{weights.path} has no tensor {missing[0]!r}, which the reference model needs")
    module.load_state_dict(state, strict=False)


def _load_by_transformers(module: Any, weights: Weights) -> None:
    """By the library's own loader, which knows what the names in a file are in memory."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    state = {
        name: torch.from_numpy(weights.read(name)).reshape(shape)
        for name, shape in weights.shapes.items()
        if not is_not_parameter(name)
    }
    loaded, info = type(module).from_pretrained(None, config=module.config, state_dict=state, output_loading_info=True)
    unexpected, missing = (
        sorted(name for name in info[kind] if not is_not_parameter(name))
        for kind in ("unexpected_keys", "missing_keys")
    )
    if unexpected:
        raise InputError(f"the reference model has no tensor {unexpected[0]!r}")
    if missing:
        raise InputError(f"{weights.path} has no tensor {missing[0]!r}, which the reference model needs")
    module.load_state_dict(loaded.state_dict())


@torch.no_grad()
def features(
    module: torch.nn.Module, source_format: str, images: np.ndarray, tokens: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """What the reference computes.

    Args:
        module: A model of :func:`build`, or of the library's own factory.
        source_format: As :func:`checkpoints_conversion.tables.detect` names it.
        images: Normalised pixels [n, H, W, 3].
        tokens: Token ids [n, t], for CLIPs.

    Returns:
        ``image`` [n, d]; for CLIPs ``text`` [n, d]; for classifiers ``logits`` [n, c].
    """
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    model: Any = module
    if source_format in _HEADS:
        read: dict[str, Any] = {}
        head = module.get_submodule(_HEADS[source_format])
        hook = head.register_forward_pre_hook(lambda _, args: read.update(image=args[0]))
        out = model(pixels)
        hook.remove()
        return {"image": read["image"].numpy(), "logits": getattr(out, "logits", out).numpy()}
    ids = None if tokens is None else torch.from_numpy(np.asarray(tokens, np.int64))
    if source_format == "open_clip":
        image, text = model.encode_image(pixels), None if ids is None else model.encode_text(ids)
    else:
        image = model.visual_projection(model.vision_model(pixels).pooler_output)
        text = None if ids is None else model.text_projection(model.text_model(ids).pooler_output)
    return {"image": image.numpy()} | ({} if text is None else {"text": text.numpy()})


@torch.no_grad()
def randomize(module: torch.nn.Module, seed: int) -> None:
    """Draws every parameter and buffer anew, so that nothing is zero, one or alike.

    Matrices keep the scale that preserves a signal's size; norms' gains are in [0.5, 1.5], running variances in
    [0.5, 2], biases and running means have standard deviation 0.1. The norm that ends a ResNet's residual branch has
    gains in [0.1, 0.5]: trained ones start at 0, and at 1 a hundred layers amplify any rounding until only noise is
    compared.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        if name.endswith("attn_mask"):
            continue
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif name.endswith("logit_scale"):
            tensor.uniform_(2.0, 4.6, generator=generator)
        elif tensor.ndim >= 2 and not any(word in name for word in ("embed", "token", "query")):
            tensor.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
        elif tensor.ndim >= 2 or "embed" in name or "token" in name:
            tensor.normal_(0, 0.5, generator=generator)
        elif BRANCH_END.search(name):
            tensor.uniform_(0.1, 0.5, generator=generator)
        elif name.endswith(("weight", "gamma")):
            tensor.uniform_(0.5, 1.5, generator=generator)
        else:
            tensor.normal_(0, 0.1, generator=generator)


# --- builders --------------------------------------------------------------------------------------------------------


def _open_clip(cfg: ModelConfig) -> torch.nn.Module:
    import open_clip

    vision, text = cfg.vision, cfg.text
    if text is None or isinstance(vision, config.ResNet):
        raise InputError(f"{cfg.name} is no CLIP: open_clip has no reference for it")
    if isinstance(vision, config.ViT):
        vision_cfg: dict[str, Any] = {
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "layers": vision.layers,
            "width": vision.width,
            "head_width": vision.width // vision.heads,
            "mlp_ratio": _ratio(vision.mlp_width, vision.width),
            "ls_init_value": 1e-5 if vision.layer_scale else None,
            "no_ln_pre": not vision.pre_norm,
            "final_ln_after_pool": vision.norm_after_pool,
            "attentional_pool": vision.pool == "attention",
            "attn_pooler_heads": vision.pool_heads,
            "attn_pooler_queries": vision.pool_queries,
            "pool_type": "avg" if vision.pool == "average" else "tok",
            "norm_kwargs": {"eps": vision.norm_eps},
        }
        quick = vision.activation == "quick_gelu"
    else:
        vision_cfg = {
            "image_size": vision.image_size,
            "layers": list(vision.layers),
            "width": vision.width,
            "head_width": vision.width * 32 // vision.heads,
        }
        quick = text.activation == "quick_gelu"
    text_cfg = {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "width": text.width,
        "heads": text.heads,
        "layers": text.layers,
        "mlp_ratio": _ratio(text.mlp_width, text.width),
        "ls_init_value": 1e-5 if text.layer_scale else None,
        "no_causal_mask": not text.causal,
        "pool_type": text.pool,
        "eos_id": text.eos_id,
        "proj_bias": text.projection_bias,
        "norm_kwargs": {"eps": text.norm_eps},
    }
    bias = -10.0 if cfg.logit_bias else None
    return open_clip.CLIP(vision.output_dim, vision_cfg, text_cfg, quick_gelu=quick, init_logit_bias=bias)


def _ratio(mlp_width: int, width: int) -> float:
    """A ratio of which ``int(width * ratio)`` is exactly ``mlp_width`` (g/14's is 4.3637)."""
    return (mlp_width + 0.5) / width


_HF_ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_tanh": "gelu_pytorch_tanh"}


def _hf_clip(cfg: ModelConfig) -> torch.nn.Module:
    import transformers

    vision, text = cfg.vision, cfg.text
    assert isinstance(vision, config.ViT) and text is not None
    tower = _hf_vit_config(vision)
    tower |= {"projection_dim": vision.output_dim}
    words = {
        "hidden_size": text.width,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "intermediate_size": text.mlp_width,
        "max_position_embeddings": text.context_length,
        "vocab_size": text.vocab_size,
        "hidden_act": _HF_ACTIVATIONS[text.activation],
        "layer_norm_eps": text.norm_eps,
        "eos_token_id": 2 if text.pool == "argmax" else text.eos_id,
        "projection_dim": text.output_dim,
    }
    return transformers.CLIPModel(
        transformers.CLIPConfig(vision_config=tower, text_config=words, projection_dim=vision.output_dim)
    )


def _hf_vit_config(vision: config.ViT) -> dict[str, Any]:
    return {
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "hidden_size": vision.width,
        "num_hidden_layers": vision.layers,
        "num_attention_heads": vision.heads,
        "intermediate_size": vision.mlp_width,
        "hidden_act": _HF_ACTIVATIONS[vision.activation],
        "layer_norm_eps": vision.norm_eps,
    }


def _hf_classes(cfg: ModelConfig) -> dict[str, Any]:
    return {"num_labels": cfg.num_classes}


def _hf_vit(cfg: ModelConfig) -> torch.nn.Module:
    import transformers

    assert isinstance(cfg.vision, config.ViT)
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(**_hf_vit_config(cfg.vision), **_hf_classes(cfg))
    )


def _hf_resnet(cfg: ModelConfig) -> torch.nn.Module:
    import transformers

    vision = cfg.vision
    assert isinstance(vision, config.ResNet)
    return transformers.ResNetForImageClassification(
        transformers.ResNetConfig(
            **_hf_classes(cfg),
            embedding_size=vision.width,
            hidden_sizes=[vision.output_dim // 2**i for i in reversed(range(len(vision.layers)))],
            layer_type=vision.block,
            depths=list(vision.layers),
            downsample_in_bottleneck=vision.stride_in_1x1,
        )
    )


def _timm_vit(cfg: ModelConfig) -> torch.nn.Module:
    from functools import partial

    from timm.layers import QuickGELU
    from timm.models.vision_transformer import VisionTransformer

    vision = cfg.vision
    assert isinstance(vision, config.ViT)
    return VisionTransformer(
        img_size=vision.image_size,
        patch_size=vision.patch_size,
        num_classes=cfg.num_classes or 0,
        embed_dim=vision.width,
        depth=vision.layers,
        num_heads=vision.heads,
        mlp_ratio=_ratio(vision.mlp_width, vision.width),
        pre_norm=vision.pre_norm,
        init_values=1e-5 if vision.layer_scale else None,
        norm_layer=partial(torch.nn.LayerNorm, eps=vision.norm_eps),
        act_layer=QuickGELU if vision.activation == "quick_gelu" else torch.nn.GELU,
    )


def _torchvision_vit(cfg: ModelConfig) -> torch.nn.Module:
    from functools import partial

    from torchvision.models import VisionTransformer

    vision = cfg.vision
    assert isinstance(vision, config.ViT) and cfg.num_classes is not None
    return VisionTransformer(
        vision.image_size,
        vision.patch_size,
        vision.layers,
        vision.heads,
        vision.width,
        vision.mlp_width,
        num_classes=cfg.num_classes,
        norm_layer=partial(torch.nn.LayerNorm, eps=vision.norm_eps),
    )


def _resnet(cfg: ModelConfig) -> torch.nn.Module:
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

    vision = cfg.vision
    assert isinstance(vision, config.ResNet)
    block = BasicBlock if vision.block == "basic" else Bottleneck
    if vision.width != 64 or vision.stride_in_1x1 or vision.stem != "7x7" or len(vision.layers) != 4:
        raise InputError(f"{cfg.name}: torchvision has no reference for this ResNet")
    return ResNet(block, list(vision.layers), num_classes=cfg.num_classes)


_BUILDERS = {
    "open_clip": _open_clip,
    "hf_clip": _hf_clip,
    "hf_vit": _hf_vit,
    "hf_resnet": _hf_resnet,
    "timm_vit": _timm_vit,
    "torchvision_vit": _torchvision_vit,
    "resnet": _resnet,
}
