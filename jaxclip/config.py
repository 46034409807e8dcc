"""What must be said of a checkpoint to run it: towers and preprocessing, as frozen dataclasses that are also JSON."""

import dataclasses
import math
import typing
from collections.abc import Callable
from typing import Any, Literal

from jaxclip.errors import InputError

Activation = Literal["gelu", "quick_gelu", "gelu_tanh"]
Block = Literal["bottleneck", "basic"]

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INCEPTION_MEAN = INCEPTION_STD = (0.5, 0.5, 0.5)


@dataclasses.dataclass(frozen=True)
class ViT:
    """A vision transformer (Dosovitskiy et al. 2021), with the variations of CLIP's (Radford et al. 2021).

    ``output_dim`` is the width of CLIP's final projection; None means no projection (supervised ViTs), and then the
    representation has ``width`` features. ``pool`` takes the class token, the mean of the patch tokens, or CoCa's
    attentional pooling with ``pool_queries`` learned queries (of which the first is the output).
    """

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    output_dim: int | None = None
    activation: Activation = "gelu"
    norm_eps: float = 1e-5
    patch_bias: bool = False
    pre_norm: bool = True
    """A layer norm before the first block (CLIP has one, supervised ViTs do not)."""
    pool: Literal["class", "average", "attention"] = "class"
    norm_after_pool: bool = False
    """The final layer norm sees the pooled token rather than every token (open_clip's ``final_ln_after_pool``)."""
    pool_heads: int = 8
    pool_queries: int = 256
    layer_scale: bool = False


@dataclasses.dataclass(frozen=True)
class CLIPResNet:
    """CLIP's ModifiedResNet: three-convolution stem, anti-aliasing average pools, attention pool."""

    image_size: int
    layers: tuple[int, int, int, int]
    width: int
    heads: int
    output_dim: int


@dataclasses.dataclass(frozen=True)
class ResNet:
    """A ResNet as torchvision's and timm's: bottlenecks are version 1.5 (the stride is in the 3x3 convolution).

    ``stride_in_1x1`` is version 1 (He et al. 2016; Hugging Face's ``downsample_in_bottleneck``). ``layers`` are the
    blocks of each stage; stage i has ``width`` · 2**i channels, four times as many where bottlenecks end.
    """

    image_size: int
    layers: tuple[int, ...]
    width: int = 64
    stride_in_1x1: bool = False
    block: Block = "bottleneck"
    """``basic``, two 3x3 convolutions, is that of ResNet-18 and -34."""
    stem: Literal["7x7", "3x3"] = "7x7"
    """The first convolution, before the max pool: of stride 2; or of stride 1, for pictures of about 32 pixels."""

    @property
    def output_dim(self) -> int:
        """The width of h(x)."""
        return self.width * 2 ** (len(self.layers) - 1) * (4 if self.block == "bottleneck" else 1)


@dataclasses.dataclass(frozen=True)
class Text:
    """CLIP's text transformer. ``pool`` says which token is the output.

    ``argmax``: the one with the largest id, which is end-of-text in CLIP's vocabulary; ``eos``: the first that equals
    ``eos_id``; ``first`` and ``last`` as they say.
    """

    context_length: int
    vocab_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    output_dim: int
    activation: Activation = "gelu"
    norm_eps: float = 1e-5
    causal: bool = True
    pool: Literal["argmax", "eos", "first", "last"] = "argmax"
    eos_id: int = 49407
    projection_bias: bool = False
    layer_scale: bool = False


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """From a decoded picture to the uint8 crop [size, size, 3], and the normalisation that the device then does.

    ``resize`` ``shortest``: the shorter side becomes ``resize_to`` pixels, then the centre ``size`` square is cropped;
    ``squash``: both sides become ``size``, whatever the aspect. ``convert_rgb`` says whether the reference converts to
    RGB before it resizes (timm, torchvision) or after (OpenAI, open_clip), or puts the picture over white and then
    resizes (transformers 5's CLIP): outputs differ for palette, RGBA, CMYK and 16-bit pictures. Where the centre is
    half a pixel off, ``crop_rounding`` moves the crop to an ``even`` margin (torchvision) or ``down`` (transformers).
    """

    size: int
    resize: Literal["shortest", "squash"] = "shortest"
    resize_to: int | None = None
    """None means ``size``."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    convert_rgb: Literal["before", "after", "over_white"] = "after"
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    crop_rounding: Literal["even", "down"] = "even"

    def __post_init__(self):
        check_choices("preprocessing", self)


Vision = ViT | CLIPResNet | ResNet
_VISION_TYPES = {"vit": ViT, "clip_resnet": CLIPResNet, "resnet": ResNet}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A whole model: a CLIP when ``text`` is set, a classifier when ``num_classes`` is.

    Attributes:
        name: The registry's name, or one the user gave.
        vision: The image tower.
        preprocess: What its pictures go through.
        text: The text tower of a CLIP.
        num_classes: The rows of the linear head of a classifier.
        logit_bias: Whether the CLIP has a learned logit bias (sigmoid loss).
        source: Provenance, for the record: file or hub id, its SHA-256, the format, the tool's version; of a
            hub id the commit.
    """

    name: str
    vision: Vision
    preprocess: Preprocess
    text: Text | None = None
    num_classes: int | None = None
    logit_bias: bool = False
    source: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        _check_numbers(self)

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types; :meth:`from_json` is its inverse."""
        out = dataclasses.asdict(self)
        kind = next(kind for kind, cls in _VISION_TYPES.items() if type(self.vision) is cls)
        out["vision"] = {"type": kind, **out["vision"]}
        return out

    @classmethod
    def from_json(cls, data: dict[str, Any], where: str = "config") -> "ModelConfig":
        """Reads what :meth:`to_json` wrote.

        Raises:
            InputError: A key is missing, unknown or of the wrong type, or two numbers do not fit; ``where`` names the
                file in the message.
        """
        data = dict(data)
        vision = dict(data.get("vision") or {})
        kind = vision.pop("type", None)
        if kind not in _VISION_TYPES:
            raise InputError(f"{where}: vision.type is {kind!r}, not one of {', '.join(_VISION_TYPES)}")
        data["vision"] = _read(_VISION_TYPES[kind], vision, f"{where}: vision")
        data["preprocess"] = _read(Preprocess, data.get("preprocess") or {}, f"{where}: preprocess")
        if data.get("text") is not None:
            data["text"] = _read(Text, data["text"], f"{where}: text")
        return _read(cls, data, where)


def _check_numbers(config: ModelConfig) -> None:
    """Raises an InputError where a size is not positive, or two do not go with each other."""
    vision, text, pixels = config.vision, config.text, config.preprocess
    for cfg in (vision, text, pixels):
        hints = {} if cfg is None else typing.get_type_hints(type(cfg))
        if not all(_fits(getattr(cfg, field), hint) for field, hint in hints.items()):
            return  # who reads JSON says so, by the key
    sizes = [] if config.num_classes is None else [("num_classes", config.num_classes)]
    for part, cfg in {"vision": vision, "text": text, "preprocess": pixels}.items():
        for field, value in {} if cfg is None else vars(cfg).items():
            values = value if isinstance(value, tuple) else (value,)
            if any(isinstance(v, float) and not math.isfinite(v) for v in values):
                raise InputError(f"{part}.{field} is {value}: it must be finite")
            if field not in ("eos_id", "mean", "std"):
                sizes += [(f"{part}.{field}", v) for v in values if type(v) is int]
    for name, size in sizes:
        if size < 1:
            raise InputError(f"{name} is {size}: it must be at least 1")
    if min(pixels.std) <= 0:
        raise InputError(f"preprocess.std is {pixels.std}: it must be positive")
    pairs = []
    pixels_of_a_token = 1
    if isinstance(vision, ViT):
        pixels_of_a_token = vision.patch_size
        pairs.append(("vision.width", vision.width, vision.heads))
        if vision.pool == "attention":
            pairs.append(("vision.output_dim", vision.output_dim or vision.width, vision.pool_heads))
    elif isinstance(vision, CLIPResNet):
        pixels_of_a_token = 32
        pairs.append(("32 times vision.width", 32 * vision.width, vision.heads))
    if text is not None:
        pairs.append(("text.width", text.width, text.heads))
        if vision.output_dim != text.output_dim:
            raise InputError(f"text.output_dim is {text.output_dim}, and vision.output_dim {vision.output_dim}")
    pairs.append(("vision.image_size", vision.image_size, pixels_of_a_token))
    pairs.append(("preprocess.size", pixels.size, pixels_of_a_token))
    for name, size, part_size in pairs:
        if size % part_size:
            raise InputError(f"{name} is {size}, which is not a multiple of {part_size}")


def _read(cls: type, data: dict[str, Any], where: str) -> Any:
    """Builds the dataclass ``cls`` from JSON: lists become tuples, literals, names and simple types are checked."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    if unknown := sorted(set(data) - set(fields)):
        raise InputError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(fields)}")
    required = {n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING}
    if missing := sorted(required - set(data)):
        raise InputError(f"{where}: key {missing[0]!r} is missing")
    values = {}
    for key, value in data.items():
        value = tuple(value) if isinstance(value, list) else value
        if not _fits(value, hints[key]):
            raise InputError(f"{where}: {key} is {value!r}, which is not {_spell(hints[key])}")
        values[key] = value
    try:
        return cls(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _fits(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in args
    if origin is tuple and args[-1] is Ellipsis:
        return isinstance(value, tuple) and len(value) > 0 and all(_fits(v, args[0]) for v in value)
    if origin is tuple:
        return isinstance(value, tuple) and len(value) == len(args) and all(map(_fits, value, args))
    if origin is dict:
        return isinstance(value, dict)
    if args:  # a union
        return any(_fits(value, a) for a in args)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def checked(where: str, read: Callable[[], ModelConfig]) -> ModelConfig:
    """What ``read`` makes of other libraries' JSON, of which no type is known.

    Raises:
        InputError: As ``read``; or the JSON lacks a key, or a value is of a type that the configuration cannot have.
            ``where`` names the file before each message.
    """
    try:
        found = read()
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except KeyError as error:
        raise InputError(f"{where}: key {error} is missing: is the file complete?") from None
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        raise InputError(f"{where}: a value is not of the type that it has in such a file ({error})") from None
    return ModelConfig.from_json(found.to_json(), where)


def check_choices(what: str, cfg: Any) -> None:
    """Raises an InputError where a field of a dataclass is none of the values that its ``Literal`` has."""
    for field, hint in typing.get_type_hints(type(cfg)).items():
        known, value = typing.get_args(hint), getattr(cfg, field)
        if typing.get_origin(hint) is Literal and value not in known:
            raise InputError(f"{what}: {field} is {value!r}, not {' or '.join(known)}")


def check_integers(what: str, cfg: Any) -> None:
    """Raises an InputError where a field of a dataclass that is to be an integer is something else."""
    for field, hint in typing.get_type_hints(type(cfg)).items():
        if hint is int and type(value := getattr(cfg, field)) is not int:
            raise InputError(f"{what}: {field} is {value!r}, not an integer")


def check_seed(seed: int) -> None:
    """Raises an InputError where a seed is none that both jax.random and NumPy take."""
    if not 0 <= seed < 2**63:
        raise InputError(f"seed is {seed}, not from 0 to below 2**63")


def check_batch_size(batch_size: int) -> None:
    """Raises an InputError for a batch size below 1."""
    if batch_size < 1:
        raise InputError(f"batch size is {batch_size}: it must be at least 1")


def _spell(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    return hint.__name__ if isinstance(hint, type) else str(hint)


# --- open_clip's own config format -----------------------------------------------------------------------------------

_OPEN_CLIP_VISION = {
    "image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size", "ls_init_value", "attentional_pool",
    "attn_pooler_queries", "attn_pooler_heads", "no_ln_pre", "final_ln_after_pool", "pool_type", "norm_kwargs",
}  # fmt: skip
_OPEN_CLIP_TEXT = {
    "context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "ls_init_value", "no_causal_mask",
    "pool_type", "eos_id", "proj_bias", "norm_kwargs",
}  # fmt: skip
# Keys that change nothing about inference, or only name what the towers' defaults already are.
_OPEN_CLIP_IGNORED = {"patch_dropout", "output_tokens", "pad_id"}


def from_open_clip(config: dict[str, Any], name: str, where: str = "open_clip config") -> ModelConfig:
    """Reads open_clip's config: a model config (``embed_dim``, ``vision_cfg``, ``text_cfg``), or a hub repository's
    ``open_clip_config.json``, which wraps one in ``model_cfg`` and adds ``preprocess_cfg``.

    Source: ``CLIPVisionCfg``, ``CLIPTextCfg`` and ``PreprocessCfg`` of open_clip 3.3.

    Raises:
        InputError: The config asks for a tower that jaxclip has not (timm or Hugging Face towers, CoCa's decoder,
            custom attention), or is not of open_clip's form; the message names the key.

    """  # noqa: D205
    return checked(where, lambda: _from_open_clip(config, name))


def _from_open_clip(config: dict[str, Any], name: str) -> ModelConfig:
    model = config.get("model_cfg", config)
    if "vision_cfg" not in model or "text_cfg" not in model or "embed_dim" not in model:
        raise InputError("not an open_clip config (it has no embed_dim, vision_cfg and text_cfg)")
    for part in ("vision_cfg", "text_cfg"):
        if others := set((model[part] or {}).get("norm_kwargs") or {}) - {"eps"}:
            raise InputError(f"{part}.norm_kwargs.{min(others)} is not supported")
    for key in ("multimodal_cfg", "nonscalar_logit_scale"):
        if model.get(key):
            raise InputError(f"{key} is not supported: only CLIP's two towers are")
    vision, text = model["vision_cfg"], model["text_cfg"]
    for part, cfg, known in (("vision_cfg", vision, _OPEN_CLIP_VISION), ("text_cfg", text, _OPEN_CLIP_TEXT)):
        for key, value in cfg.items():
            if key in known | _OPEN_CLIP_IGNORED or not value or (key, value) == ("proj_type", "linear"):
                continue
            if (key, value) == ("pos_embed_type", "learnable"):
                continue
            what = ": jaxclip has CLIP's own tokenizer only" if "tokenizer" in key else ""
            raise InputError(f"{part}.{key} = {value!r} is not supported{what}")
    activation: Activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    image_size = vision.get("image_size", 224)
    if isinstance(image_size, list):
        if len(set(image_size)) != 1:
            raise InputError(f"vision_cfg.image_size = {image_size} is not square, which is not supported")
        image_size = image_size[0]
    pixels = config.get("preprocess_cfg", {})
    if pixels.get("resize_mode", "shortest") not in ("shortest", "squash"):
        raise InputError(f"preprocess_cfg.resize_mode = {pixels['resize_mode']!r} is not supported")
    if pixels.get("mode", "RGB") != "RGB":
        raise InputError(f"preprocess_cfg.mode = {pixels['mode']!r} is not supported")
    preprocess = Preprocess(
        size=image_size,
        resize=pixels.get("resize_mode", "shortest"),
        interpolation=pixels.get("interpolation", "bicubic"),
        mean=tuple(pixels.get("mean", OPENAI_MEAN)),
        std=tuple(pixels.get("std", OPENAI_STD)),
    )
    tower = _open_clip_vision(vision, model["embed_dim"], image_size, activation)
    text_tower = _open_clip_text(text, model["embed_dim"], activation)
    return ModelConfig(name, tower, preprocess, text_tower, logit_bias=model.get("init_logit_bias") is not None)


def _open_clip_vision(vision: dict[str, Any], embed_dim: int, image_size: int, activation: Activation) -> Vision:
    width, layers = vision.get("width", 768), vision.get("layers", 12)
    head_width = vision.get("head_width", 64)
    if isinstance(layers, list | tuple):
        depths = typing.cast(tuple[int, int, int, int], tuple(layers))
        # The pool after the last stage has open_clip's number of heads, for 32 times the stem's width.
        return CLIPResNet(image_size, depths, width, width * 32 // head_width, embed_dim)
    attention = vision.get("attentional_pool", False)
    if isinstance(attention, str):
        raise InputError(f"vision_cfg.attentional_pool = {attention!r} is not supported")
    pool_type = vision.get("pool_type", "tok")
    if attention and pool_type != "tok":
        raise InputError(f"attentional pooling with pool_type {pool_type!r} is not supported")
    if pool_type not in ("tok", "avg"):
        raise InputError(f"vision_cfg.pool_type = {pool_type!r} is not supported")
    return ViT(
        image_size=image_size,
        patch_size=vision.get("patch_size", 16),
        width=width,
        layers=layers,
        heads=width // head_width,
        mlp_width=int(width * vision.get("mlp_ratio", 4.0)),
        output_dim=embed_dim,
        activation=activation,
        norm_eps=(vision.get("norm_kwargs") or {}).get("eps", 1e-5),
        pre_norm=not vision.get("no_ln_pre", False),
        pool="attention" if attention else {"tok": "class", "avg": "average"}[pool_type],  # type: ignore[arg-type]
        norm_after_pool=vision.get("final_ln_after_pool", False) and not attention,
        pool_heads=vision.get("attn_pooler_heads", 8),
        pool_queries=vision.get("attn_pooler_queries", 256),
        layer_scale=vision.get("ls_init_value") is not None,
    )


def _open_clip_text(text: dict[str, Any], embed_dim: int, activation: Activation) -> Text:
    width = text.get("width", 512)
    tower = Text(
        context_length=text.get("context_length", 77),
        vocab_size=text.get("vocab_size", 49408),
        width=width,
        layers=text.get("layers", 12),
        heads=text.get("heads", 8),
        mlp_width=int(width * text.get("mlp_ratio", 4.0)),
        output_dim=embed_dim,
        activation=activation,
        norm_eps=(text.get("norm_kwargs") or {}).get("eps", 1e-5),
        causal=not text.get("no_causal_mask", False),
        pool=text.get("pool_type", "argmax"),
        eos_id=text.get("eos_id", 2) if text.get("pool_type") == "eos" else 49407,
        projection_bias=text.get("proj_bias", False),
        layer_scale=text.get("ls_init_value") is not None,
    )
    if tower.pool not in ("argmax", "eos", "first", "last"):
        raise InputError(f"text_cfg.pool_type = {tower.pool!r} is not supported")
    return tower
