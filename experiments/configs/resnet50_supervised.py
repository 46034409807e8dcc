"""ResNet-50 on ImageNet from scratch: Goyal et al. (2017), with torchvision's cosine and label smoothing, 90 epochs.

The rate is 0.1 for each 256 pictures of a batch, with 5 epochs of warm-up; momentum 0.9 and weight decay 0.0001 that
leaves out norms and biases. The plain recipe of torchvision's first weights reaches 76.1 %.
"""

from jaxclip.config import IMAGENET_MEAN, IMAGENET_STD, ModelConfig, Preprocess, ResNet
from jaxclip.training.optimizer import Optimizer
from jaxclip.training.recipe import Recipe

MODEL = ModelConfig(
    "resnet50-supervised",
    ResNet(224, (3, 4, 6, 3)),
    Preprocess(224, resize_to=256, interpolation="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD),
    num_classes=1000,
)
RECIPE = Recipe(
    epochs=90,
    batch_size=1024,
    optimizer=Optimizer("sgd", learning_rate=0.4, warmup=5 / 90, weight_decay=1e-4, b1=0.9, clip_norm=None),
    label_smoothing=0.1,
    save=1,
    log=50,
)
