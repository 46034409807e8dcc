"""The name tables: for each foreign format, which source tensor becomes which array, and how.

A row is ``(target, source, transform)``. A ``{}`` in the source stands for the number of a transformer block; its
tensors are stacked along a leading axis, since the blocks are scanned. Several sources are concatenated first (separate
query, key and value matrices). Nothing else is renamed anywhere: what is not in a table is reported by name.
"""

import re
from collections.abc import Callable, Iterable

import numpy as np

from jaxclip import config
from jaxclip.config import ModelConfig

Row = tuple[str, str | tuple[str, ...], str]

TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "copy": lambda x: x,
    "linear": lambda x: x.T,  # [out, in] → [in, out]
    "conv": lambda x: x.transpose(2, 3, 1, 0),  # OIHW → HWIO
    "patch": lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),  # OIHW → [H·W·I, O], as ViT flattens patches
    "scalar": lambda x: x.reshape(()),
    "first": lambda x: x[0],  # [1, t, w] → [t, w]
    "first2": lambda x: x[0, 0],  # [1, 1, w] → [w]
    "third0": lambda x: np.split(x, 3)[0],  # the query's part of a joint bias, then the key's and the value's
    "third1": lambda x: np.split(x, 3)[1],
    "third2": lambda x: np.split(x, 3)[2],
}

# Tensors that are no parameters: dropped wherever they are found.
NOT_PARAMETERS = {
    r"(.*\.)?num_batches_tracked": "counts training steps",
    r"(.*\.)?position_ids": "0, 1, 2, …",
    r"(text\.)?attn_mask": "the causal mask",
    r"input_resolution|context_length|vocab_size": "sizes, in OpenAI's archives",
}


def detect(names: Iterable[str]) -> str | None:
    """The format that a file of weights is in, from its names; None when it is none of ours."""
    names = set(names)
    for mark, found in {
        "visual.conv1.weight": "open_clip",
        "vision_model.embeddings.class_embedding": "hf_clip",
        "vit.embeddings.cls_token": "hf_vit",
        "resnet.embedder.embedder.convolution.weight": "hf_resnet",
        "conv_proj.weight": "torchvision_vit",
        "patch_embed.proj.weight": "timm_vit",
        "layer1.0.conv2.weight": "resnet",
    }.items():
        if mark in names:
            return found
    return None


def rows(source_format: str, cfg: ModelConfig, names: Iterable[str]) -> list[Row]:
    """The table of a format for a model. ``names`` tells apart the layouts that a format has had."""
    names = set(names)
    match source_format:
        case "open_clip":
            prefix = "text." if "text.token_embedding.weight" in names else ""
            return _open_clip(cfg, prefix)
        case "hf_clip":
            return _hf_clip()
        case "hf_vit":
            return _hf_vit()
        case "hf_resnet":
            return _hf_resnet(cfg)
        case "torchvision_vit":
            return _torchvision_vit(names)
        case "timm_vit":
            return _timm_vit(cfg)
        case "resnet":
            return _resnet(cfg)
    raise ValueError(source_format)


def is_not_parameter(name: str) -> bool:
    """Whether a source tensor is one of :data:`NOT_PARAMETERS`."""
    return any(re.fullmatch(pattern, name) for pattern in NOT_PARAMETERS)


# --- pieces ----------------------------------------------------------------------------------------------------------


def _norm(target: str, source: str) -> list[Row]:
    return [(f"{target}.scale", f"{source}.weight", "copy"), (f"{target}.bias", f"{source}.bias", "copy")]


def _linear(target: str, source: str | tuple[str, ...]) -> list[Row]:
    if isinstance(source, tuple):
        return [
            (f"{target}.kernel", tuple(f"{s}.weight" for s in source), "linear"),
            (f"{target}.bias", tuple(f"{s}.bias" for s in source), "copy"),
        ]
    return [(f"{target}.kernel", f"{source}.weight", "linear"), (f"{target}.bias", f"{source}.bias", "copy")]


def _batch_norm(target: str, source: str) -> list[Row]:
    return [
        *_norm(target, source),
        (f"{target}.mean", f"{source}.running_mean", "copy"),
        (f"{target}.var", f"{source}.running_var", "copy"),
    ]


def _conv_bn(target: str, number: int | str, conv: str, bn: str) -> list[Row]:
    name = f"{target}.conv{number}" if isinstance(number, int) else f"{target}.{number}_conv"
    norm = f"{target}.bn{number}" if isinstance(number, int) else f"{target}.{number}_bn"
    return [(f"{name}.kernel", f"{conv}.weight", "conv"), *_batch_norm(norm, bn)]


# --- open_clip and OpenAI --------------------------------------------------------------------------------------------


def _torch_attention_blocks(target: str, source: str, layer_scale: bool) -> list[Row]:
    b = f"{target}.transformer.blocks"
    scales = [(f"{b}.scale{i}", f"{source}.ls_{i}.gamma", "copy") for i in (1, 2)] if layer_scale else []
    return [
        *_norm(f"{b}.norm1", f"{source}.ln_1"),
        (f"{b}.qkv.kernel", f"{source}.attn.in_proj_weight", "linear"),
        (f"{b}.qkv.bias", f"{source}.attn.in_proj_bias", "copy"),
        *_linear(f"{b}.out", f"{source}.attn.out_proj"),
        *_norm(f"{b}.norm2", f"{source}.ln_2"),
        *_linear(f"{b}.mlp_in", f"{source}.mlp.c_fc"),
        *_linear(f"{b}.mlp_out", f"{source}.mlp.c_proj"),
        *scales,
    ]


def _open_clip(cfg: ModelConfig, text_prefix: str) -> list[Row]:
    vision, text, p = cfg.vision, cfg.text, text_prefix
    out: list[Row] = []
    if isinstance(vision, config.ViT):
        out += [
            ("vision.class_token", "visual.class_embedding", "copy"),
            ("vision.positions", "visual.positional_embedding", "copy"),
            ("vision.patch_embedding.kernel", "visual.conv1.weight", "patch"),
            *(_norm("vision.norm_pre", "visual.ln_pre") if vision.pre_norm else []),
            *_torch_attention_blocks("vision", "visual.transformer.resblocks.{}", vision.layer_scale),
            *_norm("vision.norm_post", "visual.ln_post"),
            ("vision.projection", "visual.proj", "copy"),
        ]
        if vision.pool == "attention":
            t, s = "vision.attention_pool", "visual.attn_pool"
            out += [
                (f"{t}.queries", f"{s}.query", "copy"),
                *_norm(f"{t}.norm_q", f"{s}.ln_q"),
                *_norm(f"{t}.norm_kv", f"{s}.ln_k"),
                (f"{t}.q.kernel", f"{s}.attn.q_proj_weight", "linear"),
                (f"{t}.k.kernel", f"{s}.attn.k_proj_weight", "linear"),
                (f"{t}.v.kernel", f"{s}.attn.v_proj_weight", "linear"),
                *((f"{t}.{n}.bias", f"{s}.attn.in_proj_bias", f"third{i}") for i, n in enumerate("qkv")),
                *_linear(f"{t}.out", f"{s}.attn.out_proj"),
            ]
    elif isinstance(vision, config.CLIPResNet):
        for i in (1, 2, 3):
            out += _conv_bn("vision", i, f"visual.conv{i}", f"visual.bn{i}")
        out += _blocks(vision.layers, "visual.layer{}.{}", "conv{}", "bn{}", "downsample.0", "downsample.1")
        out += [
            ("vision.pool.positions", "visual.attnpool.positional_embedding", "copy"),
            *_linear("vision.pool.q", "visual.attnpool.q_proj"),
            *_linear("vision.pool.k", "visual.attnpool.k_proj"),
            *_linear("vision.pool.v", "visual.attnpool.v_proj"),
            *_linear("vision.pool.out", "visual.attnpool.c_proj"),
        ]
    if text is not None:
        out += [
            ("text.token_embedding.embedding", f"{p}token_embedding.weight", "copy"),
            ("text.positions", f"{p}positional_embedding", "copy"),
            *_torch_attention_blocks("text", f"{p}transformer.resblocks.{{}}", text.layer_scale),
            *_norm("text.norm_post", f"{p}ln_final"),
            *(
                _linear("text.projection", f"{p}text_projection")
                if text.projection_bias
                else [("text.projection.kernel", f"{p}text_projection", "copy")]
            ),
            ("logit_scale", "logit_scale", "scalar"),
            *([("logit_bias", "logit_bias", "scalar")] if cfg.logit_bias else []),
        ]
    return out


# --- Hugging Face ----------------------------------------------------------------------------------------------------


def _hf_clip_tower(target: str, source: str) -> list[Row]:
    b, s = f"{target}.transformer.blocks", f"{source}.encoder.layers.{{}}"
    return [
        *_norm(f"{b}.norm1", f"{s}.layer_norm1"),
        *_linear(f"{b}.qkv", (f"{s}.self_attn.q_proj", f"{s}.self_attn.k_proj", f"{s}.self_attn.v_proj")),
        *_linear(f"{b}.out", f"{s}.self_attn.out_proj"),
        *_norm(f"{b}.norm2", f"{s}.layer_norm2"),
        *_linear(f"{b}.mlp_in", f"{s}.mlp.fc1"),
        *_linear(f"{b}.mlp_out", f"{s}.mlp.fc2"),
    ]


def _hf_clip() -> list[Row]:
    return [
        ("vision.class_token", "vision_model.embeddings.class_embedding", "copy"),
        ("vision.positions", "vision_model.embeddings.position_embedding.weight", "copy"),
        ("vision.patch_embedding.kernel", "vision_model.embeddings.patch_embedding.weight", "patch"),
        *_norm("vision.norm_pre", "vision_model.pre_layrnorm"),  # the misspelling is theirs
        *_hf_clip_tower("vision", "vision_model"),
        *_norm("vision.norm_post", "vision_model.post_layernorm"),
        ("vision.projection", "visual_projection.weight", "linear"),
        ("text.token_embedding.embedding", "text_model.embeddings.token_embedding.weight", "copy"),
        ("text.positions", "text_model.embeddings.position_embedding.weight", "copy"),
        *_hf_clip_tower("text", "text_model"),
        *_norm("text.norm_post", "text_model.final_layer_norm"),
        ("text.projection.kernel", "text_projection.weight", "linear"),
        ("logit_scale", "logit_scale", "scalar"),
    ]


def _hf_vit() -> list[Row]:
    b, s = "vision.transformer.blocks", "vit.encoder.layer.{}"
    qkv = tuple(f"{s}.attention.attention.{name}" for name in ("query", "key", "value"))
    return [
        ("vision.class_token", "vit.embeddings.cls_token", "first2"),
        ("vision.positions", "vit.embeddings.position_embeddings", "first"),
        ("vision.patch_embedding.kernel", "vit.embeddings.patch_embeddings.projection.weight", "patch"),
        ("vision.patch_embedding.bias", "vit.embeddings.patch_embeddings.projection.bias", "copy"),
        *_norm(f"{b}.norm1", f"{s}.layernorm_before"),
        *_linear(f"{b}.qkv", qkv),
        *_linear(f"{b}.out", f"{s}.attention.output.dense"),
        *_norm(f"{b}.norm2", f"{s}.layernorm_after"),
        *_linear(f"{b}.mlp_in", f"{s}.intermediate.dense"),
        *_linear(f"{b}.mlp_out", f"{s}.output.dense"),
        *_norm("vision.norm_post", "vit.layernorm"),
        *_linear("head", "classifier"),
    ]


def _hf_resnet(cfg: ModelConfig) -> list[Row]:
    assert isinstance(cfg.vision, config.ResNet)
    stem = "resnet.embedder.embedder"
    block = "resnet.encoder.stages.{}.layers.{}"
    out = _conv_bn("vision", 1, f"{stem}.convolution", f"{stem}.normalization")
    out += _blocks(
        cfg.vision.layers,
        block,
        "layer.{}.convolution",
        "layer.{}.normalization",
        "shortcut.convolution",
        "shortcut.normalization",
        first_stage=0,
        first_conv=0,
        basic=cfg.vision.block == "basic",
    )
    return out + _linear("head", "classifier.1")


# --- timm and torchvision --------------------------------------------------------------------------------------------


def _timm_vit(cfg: ModelConfig) -> list[Row]:
    assert isinstance(cfg.vision, config.ViT)
    b, s = "vision.transformer.blocks", "blocks.{}"
    scales = [(f"{b}.scale{i}", f"{s}.ls{i}.gamma", "copy") for i in (1, 2)] if cfg.vision.layer_scale else []
    return [
        ("vision.class_token", "cls_token", "first2"),
        ("vision.positions", "pos_embed", "first"),
        ("vision.patch_embedding.kernel", "patch_embed.proj.weight", "patch"),
        *([("vision.patch_embedding.bias", "patch_embed.proj.bias", "copy")] if cfg.vision.patch_bias else []),
        *(_norm("vision.norm_pre", "norm_pre") if cfg.vision.pre_norm else []),
        *_norm(f"{b}.norm1", f"{s}.norm1"),
        *_linear(f"{b}.qkv", f"{s}.attn.qkv"),
        *_linear(f"{b}.out", f"{s}.attn.proj"),
        *_norm(f"{b}.norm2", f"{s}.norm2"),
        *_linear(f"{b}.mlp_in", f"{s}.mlp.fc1"),
        *_linear(f"{b}.mlp_out", f"{s}.mlp.fc2"),
        *scales,
        *_norm("vision.norm_post", "fc_norm" if cfg.vision.norm_after_pool else "norm"),
        *_linear("head", "head"),
    ]


def _torchvision_vit(names: set[str]) -> list[Row]:
    """The published files are older than torchvision 0.13, in which the MLP's two linear maps have other names."""
    b, s = "vision.transformer.blocks", "encoder.layers.encoder_layer_{}"
    old = "encoder.layers.encoder_layer_0.mlp.linear_1.weight" in names
    mlp_in, mlp_out = ("linear_1", "linear_2") if old else ("0", "3")
    return [
        ("vision.class_token", "class_token", "first2"),
        ("vision.positions", "encoder.pos_embedding", "first"),
        ("vision.patch_embedding.kernel", "conv_proj.weight", "patch"),
        ("vision.patch_embedding.bias", "conv_proj.bias", "copy"),
        *_norm(f"{b}.norm1", f"{s}.ln_1"),
        (f"{b}.qkv.kernel", f"{s}.self_attention.in_proj_weight", "linear"),
        (f"{b}.qkv.bias", f"{s}.self_attention.in_proj_bias", "copy"),
        *_linear(f"{b}.out", f"{s}.self_attention.out_proj"),
        *_norm(f"{b}.norm2", f"{s}.ln_2"),
        *_linear(f"{b}.mlp_in", f"{s}.mlp.{mlp_in}"),
        *_linear(f"{b}.mlp_out", f"{s}.mlp.{mlp_out}"),
        *_norm("vision.norm_post", "encoder.ln"),
        *_linear("head", "heads.head"),
    ]


def _resnet(cfg: ModelConfig) -> list[Row]:
    """Torchvision's and timm's ResNets have the same names."""
    assert isinstance(cfg.vision, config.ResNet)
    out = _conv_bn("vision", 1, "conv1", "bn1")
    names = ("layer{}.{}", "conv{}", "bn{}", "downsample.0", "downsample.1")
    out += _blocks(cfg.vision.layers, *names, basic=cfg.vision.block == "basic")
    return out + _linear("head", "fc")


def _blocks(
    depths: tuple[int, ...],
    block: str,
    conv: str,
    bn: str,
    shortcut_conv: str,
    shortcut_bn: str,
    first_stage: int = 1,
    first_conv: int = 1,
    basic: bool = False,
) -> list[Row]:
    out: list[Row] = []
    for stage, depth in enumerate(depths):
        for i in range(depth):
            t, s = f"vision.stages.{stage}.{i}", block.format(stage + first_stage, i)
            for j in range(2 if basic else 3):
                name = j + first_conv
                out += _conv_bn(t, j + 1, f"{s}.{conv.format(name)}", f"{s}.{bn.format(name)}")
            if i == 0 and (stage > 0 or not basic):
                out += _conv_bn(t, "shortcut", f"{s}.{shortcut_conv}", f"{s}.{shortcut_bn}")
    return out
