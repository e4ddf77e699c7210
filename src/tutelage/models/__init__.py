"""Architectures, one file each, and what they share."""

from tutelage.models.base import ImageClassifier, ImageSpec, Recipe, accuracy, cross_entropy
from tutelage.models.evaluation import Answers, answers, confusion, measure
from tutelage.models.lenet5 import LeNet5
from tutelage.models.mlp import MLP
from tutelage.models.resnet import ResNet
from tutelage.models.timm import Timm
from tutelage.models.weights import load_classifier, make_classifier, save_classifier, weight_hash

__all__ = [
    "MLP",
    "Answers",
    "ImageClassifier",
    "ImageSpec",
    "LeNet5",
    "Recipe",
    "ResNet",
    "Timm",
    "accuracy",
    "answers",
    "confusion",
    "cross_entropy",
    "load_classifier",
    "make_classifier",
    "measure",
    "save_classifier",
    "weight_hash",
]
