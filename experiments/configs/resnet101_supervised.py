"""ResNet-101 on ImageNet from scratch: as ResNet-50, in ``resnet50_supervised.py``."""

import dataclasses

from experiments.configs import resnet50_supervised
from jaxclip.config import ResNet

MODEL = dataclasses.replace(resnet50_supervised.MODEL, name="resnet101-supervised", vision=ResNet(224, (3, 4, 23, 3)))
RECIPE = resnet50_supervised.RECIPE
