"""CLIP's ResNet-50 on ImageNet-Captions, from scratch: open_clip's defaults at the batch size of Fang et al. (2022).

AdamW at 1e-3 with weight decay 0.2 (open_clip's default), beta2 0.999 and epsilon 1e-8 (its for ResNets), batches of
1,024, 32 epochs, random crops of 0.9 to 1 of the area.
"""

from jaxclip.config import CLIPResNet, ModelConfig, Preprocess, Text
from jaxclip.training.augment import Augment
from jaxclip.training.optimizer import Optimizer
from jaxclip.training.recipe import Recipe

MODEL = ModelConfig(
    "RN50/imagenet_captions",
    CLIPResNet(224, (3, 4, 6, 3), 64, 32, 1024),
    Preprocess(224),
    Text(77, 49408, 512, 12, 8, 2048, 1024),
)
RECIPE = Recipe(
    epochs=32,
    batch_size=1024,
    optimizer=Optimizer(learning_rate=1e-3, warmup=0.05, weight_decay=0.2, b2=0.999, eps=1e-8, clip_norm=None),
    augment=Augment(crop_scale=(0.9, 1.0), flip=False),
    log=50,
)
