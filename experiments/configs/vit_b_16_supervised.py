"""ViT-B/16 on ImageNet from scratch: the plain baseline of Beyer, Zhai and Kolesnikov (2022), 300 epochs, 79 to 80 %.

Theirs has Adam with decoupled weight decay 0.0001 per step at a rate of 0.001 (0.1 in AdamW's terms), RandAugment (2,
10), mixup 0.2, no label smoothing, gradients clipped to 1. Warm-up is theirs, 10,000 steps of 1,024. They pool the mean
of the patches and have sin-cos positions; this tower has a class token and learned positions, as the paper's ViT.
"""

from jaxclip.config import INCEPTION_MEAN, INCEPTION_STD, ModelConfig, Preprocess, ViT
from jaxclip.training.augment import Augment
from jaxclip.training.optimizer import Optimizer
from jaxclip.training.recipe import Recipe

MODEL = ModelConfig(
    "vit_b_16-supervised",
    ViT(224, 16, 768, 12, 12, 3072, norm_eps=1e-6, patch_bias=True, pre_norm=False),
    Preprocess(224, resize_to=256, interpolation="bilinear", mean=INCEPTION_MEAN, std=INCEPTION_STD),
    num_classes=1000,
)
RECIPE = Recipe(
    epochs=300,
    batch_size=1024,
    optimizer=Optimizer(learning_rate=1e-3, warmup=10_000 / 375_000, weight_decay=0.1, b2=0.999, eps=1e-8),
    augment=Augment(crop_scale=(0.05, 1.0), randaugment=(2, 10), mixup=0.2),
    save=5,
    log=50,
)
