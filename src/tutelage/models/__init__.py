"""Architectures, one file each, and the base class, weights and metrics that they share."""

from tutelage.models.alexnet import AlexNet
from tutelage.models.base import COUNT, ImageClassifier, ImageSpec, accuracy
from tutelage.models.evaluation import (
    compute_confusion_matrix,
    compute_metrics,
    compute_task_metrics,
    compute_validation_metrics,
    count_classes,
    evaluation_batch,
    predict,
    predict_from_logits,
    task_logits,
)
from tutelage.models.heads import UNLEARNED, Heads, load_first_task, task_heads, with_added_task
from tutelage.models.imprinting import ImprintedHead, imprint, load_old_classes, with_added_class
from tutelage.models.label_loss import CrossEntropy, LabelLoss, cross_entropy, make_loss
from tutelage.models.lenet5 import LeNet5
from tutelage.models.losses import decoupled_divergence, hint_loss, softened_divergence
from tutelage.models.mlp import MLP
from tutelage.models.nearest_neighbours import BANK_FILES, NearestNeighbours
from tutelage.models.optimization import OptimizationConfig
from tutelage.models.parameter_groups import FineTuning, freeze
from tutelage.models.perceptron import Perceptron
from tutelage.models.resnet import ResNet
from tutelage.models.small_vgg import SmallVGG
from tutelage.models.teacher import Regressor, Teacher, layer_output, middle_layer
from tutelage.models.timm import Timm, create_timm
from tutelage.models.torchvision import Torchvision
from tutelage.models.tta_views import TTA_VIEWS, VIEW_COUNTS, tta_probabilities
from tutelage.models.vgg import VGG
from tutelage.models.weights.files import load_classifier, make_classifier, save_classifier, weight_hash
from tutelage.models.weights.load_pretrained import load_pretrained
from tutelage.models.weights.published import fetch_weights, find_cached

__all__ = [
    "BANK_FILES",
    "COUNT",
    "MLP",
    "TTA_VIEWS",
    "UNLEARNED",
    "VGG",
    "VIEW_COUNTS",
    "AlexNet",
    "CrossEntropy",
    "FineTuning",
    "Heads",
    "ImageClassifier",
    "ImageSpec",
    "ImprintedHead",
    "LabelLoss",
    "LeNet5",
    "NearestNeighbours",
    "OptimizationConfig",
    "Perceptron",
    "Regressor",
    "ResNet",
    "SmallVGG",
    "Teacher",
    "Timm",
    "Torchvision",
    "accuracy",
    "compute_confusion_matrix",
    "compute_metrics",
    "compute_task_metrics",
    "compute_validation_metrics",
    "count_classes",
    "create_timm",
    "cross_entropy",
    "decoupled_divergence",
    "evaluation_batch",
    "fetch_weights",
    "find_cached",
    "freeze",
    "hint_loss",
    "imprint",
    "layer_output",
    "load_classifier",
    "load_first_task",
    "load_old_classes",
    "load_pretrained",
    "make_classifier",
    "make_loss",
    "middle_layer",
    "predict",
    "predict_from_logits",
    "save_classifier",
    "softened_divergence",
    "task_heads",
    "task_logits",
    "tta_probabilities",
    "weight_hash",
    "with_added_class",
    "with_added_task",
]
