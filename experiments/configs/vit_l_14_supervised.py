"""ViT-L/14 on ImageNet alone, from scratch: nobody publishes such weights, nor a recipe for them.

This one is ViT-B/16's, in ``vit_b_16_supervised.py``, with the regularisation that torchvision trains its ViTs with and
that larger ones need more (Steiner et al. 2022): weight decay 0.3, label smoothing 0.11, mixup 0.2 or CutMix 1.0, a
moving average. It has not been tried.
"""

import dataclasses

from experiments.configs import vit_b_16_supervised as b_16
from jaxclip.config import ViT

MODEL = dataclasses.replace(
    b_16.MODEL,
    name="vit_l_14/imagenet1k",
    vision=ViT(224, 14, 1024, 24, 16, 4096, norm_eps=1e-6, patch_bias=True, pre_norm=False),
)
RECIPE = dataclasses.replace(
    b_16.RECIPE,
    optimizer=dataclasses.replace(b_16.RECIPE.optimizer, weight_decay=0.3, ema_decay=0.9999),
    augment=dataclasses.replace(b_16.RECIPE.augment, cutmix=1.0),
    label_smoothing=0.11,
)
