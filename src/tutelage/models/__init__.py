"""Architectures, one file each, and what they share."""

from tutelage.models.alexnet import AlexNet
from tutelage.models.base import ImageClassifier, ImageSpec, Recipe, accuracy, cross_entropy
from tutelage.models.evaluation import Answers, answers, confusion, measure
from tutelage.models.lenet5 import LeNet5
from tutelage.models.mlp import MLP
from tutelage.models.nearest_neighbours import BANK_FILES, NearestNeighbours
from tutelage.models.perceptron import Perceptron
from tutelage.models.resnet import ResNet
from tutelage.models.timm import Timm
from tutelage.models.torchvision import Torchvision
from tutelage.models.vgg import VGG
from tutelage.models.weights import load_classifier, make_classifier, save_classifier, start_from, weight_hash

__all__ = [
    "BANK_FILES",
    "MLP",
    "VGG",
    "AlexNet",
    "Answers",
    "ImageClassifier",
    "ImageSpec",
    "LeNet5",
    "NearestNeighbours",
    "Perceptron",
    "Recipe",
    "ResNet",
    "Timm",
    "Torchvision",
    "accuracy",
    "answers",
    "confusion",
    "cross_entropy",
    "load_classifier",
    "make_classifier",
    "measure",
    "save_classifier",
    "start_from",
    "weight_hash",
]
