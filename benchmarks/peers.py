"""The same random weights on both sides: the library's own model, and its conversion. Imports nothing heavy itself."""

from pathlib import Path
from typing import Any

import numpy as np

Peer = tuple[str, str, str | None]
"""The reference library, its name of the architecture, ours."""
CLOSE = {"float32": 1e-5, "bfloat16": 0.05}
"""How far the two sides' representations may be apart, as a relative error, for a fair comparison."""
CONVERTED, IMAGES = "converted", "images.npy"


def make(peer: Peer, folder: Path, pictures: int = 0) -> Path:
    """Writes the library's file, our checkpoint and, normalised, some pictures into the folder.

    Returns:
        The path of the library's file.
    """
    import jaxclip
    from checkpoints_conversion.parity import SAMPLES, Case, build_and_save, real_crops
    from checkpoints_conversion.verify import inputs

    _, weights = build_and_save(Case(*peer), folder, seed=0)
    config = jaxclip.convert(weights, peer[2], folder / CONVERTED)
    if pictures:
        if SAMPLES.is_dir():
            crops = real_crops(config, pictures)
        else:  # noise, where the real pictures are not at hand
            size = config.preprocess.size
            crops = np.random.default_rng(0).integers(0, 256, (pictures, size, size, 3), np.uint8)
        np.save(folder / IMAGES, inputs(config, crops)[0])
    return weights


def torch_model(peer: Peer, weights: Path) -> Any:
    """The library's model, as its users load it, in evaluation mode; ResNets channels last, which is faster."""
    library, name, _ = peer
    model: Any
    if library == "open_clip":
        import open_clip

        model = open_clip.create_model(name, pretrained=str(weights))
    else:
        import torch
        import torchvision

        model = getattr(torchvision.models, name)()
        model.load_state_dict(torch.load(weights, weights_only=True))
    return model.eval() if is_vit(peer) else model.eval().to(memory_format=_channels_last())


def torch_images(peer: Peer, images: np.ndarray) -> Any:
    """Pictures [n, H, W, 3] as the library's model takes them, in the memory order that it is fastest with."""
    import torch

    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    return pixels.contiguous() if is_vit(peer) else pixels.contiguous(memory_format=_channels_last())


def is_vit(peer: Peer) -> bool:
    """Whether the image tower is a transformer."""
    return peer[1].lower().startswith("vit")


def _channels_last() -> Any:
    import torch

    return torch.channels_last
