"""Architectures, one file each, and what they share."""

from tutelage.models.alexnet import AlexNet
from tutelage.models.base import ImageClassifier, ImageSpec, Recipe, accuracy, cross_entropy
from tutelage.models.evaluation import Answers, answers, confusion, informed, measure, measure_tasks
from tutelage.models.heads import UNLEARNED, Heads, grown, take_over
from tutelage.models.lenet5 import LeNet5
from tutelage.models.losses import decoupled_divergence, hint_loss, softened_divergence
from tutelage.models.mlp import MLP
from tutelage.models.nearest_neighbours import BANK_FILES, NearestNeighbours
from tutelage.models.parameter_groups import Tuning, freeze
from tutelage.models.perceptron import Perceptron
from tutelage.models.resnet import ResNet
from tutelage.models.small_vgg import SmallVGG
from tutelage.models.teacher import Regressor, Teacher, middle, output_of
from tutelage.models.timm import Timm
from tutelage.models.torchvision import Torchvision
from tutelage.models.tta_views import COUNTS, VIEWS, viewed
from tutelage.models.vgg import VGG
from tutelage.models.weights.files import load_classifier, make_classifier, save_classifier, weight_hash
from tutelage.models.weights.load_pretrained import start_from

__all__ = [
    "BANK_FILES",
    "COUNTS",
    "MLP",
    "UNLEARNED",
    "VGG",
    "VIEWS",
    "AlexNet",
    "Answers",
    "Heads",
    "ImageClassifier",
    "ImageSpec",
    "LeNet5",
    "NearestNeighbours",
    "Perceptron",
    "Recipe",
    "Regressor",
    "ResNet",
    "SmallVGG",
    "Teacher",
    "Timm",
    "Torchvision",
    "Tuning",
    "accuracy",
    "answers",
    "confusion",
    "cross_entropy",
    "decoupled_divergence",
    "freeze",
    "grown",
    "hint_loss",
    "informed",
    "load_classifier",
    "make_classifier",
    "measure",
    "measure_tasks",
    "middle",
    "output_of",
    "save_classifier",
    "softened_divergence",
    "start_from",
    "take_over",
    "viewed",
    "weight_hash",
]
