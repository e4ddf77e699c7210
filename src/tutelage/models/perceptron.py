"""The perceptron: one fully connected layer."""

from torch import nn

from tutelage.models.base import ImageClassifier, ImageSpec


class Perceptron(ImageClassifier):
    """One linear unit for each class on all pixels: with cross-entropy, multinomial logistic regression."""

    head: nn.Linear

    def __init__(self, spec: ImageSpec) -> None:
        super().__init__(spec)
        self.backbone = nn.Flatten()
        self.head = nn.Linear(spec.channels * spec.image_size**2, len(spec.classes))
