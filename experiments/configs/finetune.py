"""End-to-end fine-tuning on ImageNet from the zero-shot head: WiSE-FT's hyper-parameters (Wortsman et al. 2022).

AdamW at 3e-5 with weight decay 0.1, 500 steps of warm-up of about 25,000, batches of 512, 10 epochs, gradients clipped
to 1. The paper cites that setting for its fine-tuned models and gives none of its own.
"""

from jaxclip.training.augment import Augment
from jaxclip.training.optimizer import Optimizer
from jaxclip.training.recipe import Recipe

RECIPE = Recipe(
    epochs=10,
    batch_size=512,
    optimizer=Optimizer(learning_rate=3e-5, warmup=0.02, weight_decay=0.1, b2=0.999, eps=1e-8),
    augment=Augment(crop_scale=(0.9, 1.0), flip=False),
    log=50,
)
