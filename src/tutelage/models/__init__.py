"""Architectures, one file each, and what they share."""

from tutelage.models.base import ImageClassifier, ImageSpec, Recipe, accuracy, cross_entropy
from tutelage.models.lenet5 import LeNet5
from tutelage.models.mlp import MLP
from tutelage.models.resnet import ResNet
from tutelage.models.timm import Timm

__all__ = [
    "MLP",
    "ImageClassifier",
    "ImageSpec",
    "LeNet5",
    "Recipe",
    "ResNet",
    "Timm",
    "accuracy",
    "cross_entropy",
]
