"""ViT-B/32 on ImageNet from scratch: as ViT-B/16, in ``vit_b_16_supervised.py``."""

import dataclasses

from experiments.configs import vit_b_16_supervised
from jaxclip.config import ViT

_B_16 = vit_b_16_supervised.MODEL
assert isinstance(_B_16.vision, ViT)
MODEL = dataclasses.replace(_B_16, name="vit_b_32-supervised", vision=dataclasses.replace(_B_16.vision, patch_size=32))
RECIPE = vit_b_16_supervised.RECIPE
