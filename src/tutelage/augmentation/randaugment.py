"""RandAugment and its kin over uint8 images: which operations are drawn, how many, and how strong.

Every drawn operation fires, and a larger magnitude never changes an image less.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, Field

from tutelage.augmentation.geometry import Interpolation
from tutelage.augmentation.library import albumentations
from tutelage.augmentation.operations import (
    AUGMIX,
    MAX_LEVEL,
    OPERATIONS,
    RANDAUGMENT,
    RGB,
    SIGNED,
    WIDE,
    Look,
    Ranges,
    operate,
    operate_all,
)

MAX_MAGNITUDE = 30  # torchvision's 31 bins
AUGMIX_BINS = 10
DRAWN_DEPTHS = 3  # 1, 2 or 3 operations in a chain
AUGMIX_LEAST = 0.1  # of a level, so that none is without effect
AUGMIX_OPERATIONS = tuple(  # those that make no part of ImageNet-C's corruptions (Hendrycks et al. 2020, section 3)
    name for name in OPERATIONS if name not in {"Identity", "Brightness", "Color", "Contrast", "Sharpness"}
)


def _known(names: Sequence[str] | None) -> Sequence[str] | None:
    unknown = sorted(set(names or ()) - set(OPERATIONS))
    if unknown or (names is not None and not names):
        raise ValueError(f"{unknown[0] if unknown else 'none'} is no operation; there are {', '.join(OPERATIONS)}")
    return names


Names = Annotated[Sequence[str] | None, AfterValidator(_known)]
Level = Annotated[float, Field(ge=0, le=MAX_LEVEL)]


class _Operations(albumentations.ImageOnlyTransform):  # type: ignore[misc]
    """What RandAugment and its kin share: the operations, and how they are applied to the colours of an image."""

    ranges: Ranges

    class InitSchema(albumentations.BasicTransform.InitSchema):  # type: ignore[misc]
        """Ranges of the arguments, in Albumentations' way."""

        operations: Names
        fill: Level | Annotated[list[Level], Field(min_length=RGB, max_length=RGB)]
        interpolation: Interpolation

    def __init__(
        self,
        operations: Sequence[str] | None,
        fill: float | Sequence[float],
        interpolation: Interpolation,
        p: float,
    ) -> None:
        super().__init__(p=p)
        self.operations = tuple(operations or OPERATIONS)
        self.fill = fill
        self.interpolation = interpolation
        self.look = Look(self.ranges, (fill,) * RGB if isinstance(fill, (int, float)) else tuple(fill), interpolation)
        self._signed = np.array([name in SIGNED for name in self.operations])

    def steps(self, numbers: np.ndarray, strengths: np.ndarray) -> list[list[tuple[str, float]]]:
        """Return chains of operations, drawn uniformly, with a random sign where they have one.

        Args:
            numbers: (B, N, 2) float64 in [0, 1): for the operation and for its sign.
            strengths: (B, N) float64, without a sign.
        """
        drawn = (numbers[..., 0] * len(self.operations)).astype(np.int64)
        signed = np.where(self._signed[drawn] & (numbers[..., 1] < 0.5), -strengths, strengths)  # noqa: PLR2004
        names = self.operations
        return [
            [(names[n], strength) for n, strength in zip(*chain, strict=True)]
            for chain in zip(drawn.tolist(), signed.tolist(), strict=True)
        ]

    def example(self, image: np.ndarray, name: str, magnitude: float) -> np.ndarray:
        """Return ``image`` (H, W, C) uint8 after one operation at a magnitude from 0 to 30, in its positive sense."""
        return on_colours(image, lambda colours: operate(colours, [(name, magnitude / MAX_MAGNITUDE)], self.look))


def on_colours(image: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return ``image`` (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) with its colours changed; alpha stays."""
    if image.ndim == RGB and image.shape[-1] == RGB + 1:
        return np.concatenate([change(np.ascontiguousarray(image[..., :RGB])), image[..., RGB:]], axis=-1)
    return change(np.ascontiguousarray(image).reshape(*image.shape[:2], -1)).reshape(image.shape)


class _Chain(_Operations):
    """A transform that is one chain of operations."""

    numbers: int  # in [0, 1), that the draw of an image takes

    @abstractmethod
    def chains(self, numbers: np.ndarray) -> list[list[tuple[str, float]]]:
        """Return the chain of each image from its numbers (B, ``self.numbers``) float64 in [0, 1)."""

    def get_params(self) -> dict[str, Any]:
        """Draw the chain of one image."""
        return {"steps": self.chains(np.array([[self.py_random.random() for _ in range(self.numbers)]]))[0]}

    def apply(self, img: np.ndarray, steps: list[tuple[str, float]], **_: Any) -> np.ndarray:
        """Return ``img`` (H, W, C) uint8 after the operations."""
        return on_colours(img, lambda colours: operate(colours, steps, self.look))


class RandAugment(_Chain):
    """``num_ops`` operations in sequence, drawn uniformly, all at one magnitude (Cubuk et al. 2020).

    Args:
        num_ops: how many operations, N in the paper.
        magnitude: how strong, M in the paper: linear from 0 to 30, on torchvision's table of 31 bins.
        magnitude_std: each operation's magnitude is drawn from a normal distribution about ``magnitude`` with this
            standard deviation and cut off at 0 and 30; 0 for one magnitude.
        operations: names of the operations to draw from; None for the paper's 14.
        fill: the value of pixels that come from outside the image, or three of them.
        interpolation: nearest or bilinear, how rotated and sheared images are sampled.
        p: the probability that the transform is applied at all.
    """

    ranges = RANDAUGMENT

    class InitSchema(_Operations.InitSchema):
        """Ranges of the arguments, in Albumentations' way."""

        num_ops: int = Field(ge=0, le=len(OPERATIONS))
        magnitude: float = Field(ge=0, le=MAX_MAGNITUDE)
        magnitude_std: float = Field(ge=0, le=MAX_MAGNITUDE)

    def __init__(
        self,
        num_ops: int = 2,
        magnitude: float = 9,
        magnitude_std: float = 0,
        operations: Sequence[str] | None = None,
        fill: float | Sequence[float] = 0,
        interpolation: Interpolation = "nearest",
        p: float = 1.0,
    ) -> None:
        super().__init__(operations, fill, interpolation, p)
        self.num_ops = num_ops
        self.magnitude = magnitude
        self.magnitude_std = magnitude_std
        self.numbers = num_ops * 3

    def chains(self, numbers: np.ndarray) -> list[list[tuple[str, float]]]:
        """Return the chain of each image from its numbers (B, 3 ``num_ops``) float64 in [0, 1)."""
        own = numbers.reshape(len(numbers), self.num_ops, 3)
        magnitudes = np.full(own.shape[:2], self.magnitude, dtype=np.float64)
        if self.magnitude_std:
            from scipy.special import ndtri

            magnitudes = np.clip(magnitudes + self.magnitude_std * ndtri(own[..., 2]), 0, MAX_MAGNITUDE)
        return self.steps(own[..., :2], magnitudes / MAX_MAGNITUDE)


class TrivialAugment(_Chain):
    """One operation, drawn uniformly, at a magnitude drawn uniformly from 0 to 30 (Mueller and Hutter 2021).

    Args:
        operations: names of the operations to draw from; None for all 14.
        fill: the value of pixels that come from outside the image, or three of them.
        interpolation: nearest or bilinear, how rotated and sheared images are sampled.
        p: the probability that the transform is applied at all.
    """

    ranges = WIDE
    numbers = 3

    def __init__(
        self,
        operations: Sequence[str] | None = None,
        fill: float | Sequence[float] = 0,
        interpolation: Interpolation = "nearest",
        p: float = 1.0,
    ) -> None:
        super().__init__(operations, fill, interpolation, p)

    def chains(self, numbers: np.ndarray) -> list[list[tuple[str, float]]]:
        """Return the operation of each image from its numbers (B, 3) float64 in [0, 1)."""
        magnitudes = np.floor(numbers[:, 2:] * (MAX_MAGNITUDE + 1))
        return self.steps(numbers[:, None, :2], magnitudes / MAX_MAGNITUDE)


class AugMix(_Operations):
    """Chains of operations, mixed with each other and with the image (Hendrycks et al. 2020, algorithm 1).

    Args:
        severity: the largest level of an operation, 1 to 10; each is drawn uniformly below it.
        width: how many chains.
        depth: operations in a chain; 0 draws 1 to 3 for each.
        alpha: of the Dirichlet distribution of the chains' weights and the Beta distribution of the image's own.
        operations: names of the operations to draw from; None for the paper's 9.
        fill: the value of pixels that come from outside the image, or three of them.
        interpolation: nearest or bilinear, how rotated and sheared images are sampled.
        p: the probability that the transform is applied at all.
    """

    ranges = AUGMIX

    class InitSchema(_Operations.InitSchema):
        """Ranges of the arguments, in Albumentations' way."""

        severity: float = Field(ge=AUGMIX_LEAST, le=AUGMIX_BINS)
        width: int = Field(ge=1, le=16)
        depth: int = Field(ge=0, le=16)
        alpha: float = Field(gt=0)

    def __init__(
        self,
        severity: float = 3,
        width: int = 3,
        depth: int = 0,
        alpha: float = 1.0,
        operations: Sequence[str] | None = None,
        fill: float | Sequence[float] = 0,
        interpolation: Interpolation = "nearest",
        p: float = 1.0,
    ) -> None:
        super().__init__(operations or AUGMIX_OPERATIONS, fill, interpolation, p)
        self.severity = severity
        self.width = width
        self.depth = depth
        self.alpha = alpha

    def get_params(self) -> dict[str, Any]:
        """Draw the chains, their weights and the image's own."""
        draw = self.py_random
        parts = [draw.gammavariate(self.alpha, 1) for _ in range(self.width)]  # over their sum: Dirichlet
        share = draw.betavariate(self.alpha, self.alpha)
        chains = []
        for _ in parts:
            depth = self.depth or 1 + int(draw.random() * DRAWN_DEPTHS)
            numbers = np.array([[draw.random() for _ in range(3)] for _ in range(depth)])
            levels = AUGMIX_LEAST + (self.severity - AUGMIX_LEAST) * numbers[:, 2]
            chains += self.steps(numbers[None, :, :2], levels[None] / AUGMIX_BINS)
        return {"chains": chains, "weights": [share * part / sum(parts) for part in parts]}

    def apply(
        self, img: np.ndarray, chains: list[list[tuple[str, float]]], weights: list[float], **_: Any
    ) -> np.ndarray:
        """Return the mixture (H, W, C) uint8."""
        return on_colours(img, lambda colours: self._mixed(colours, chains, weights))

    def _mixed(
        self, colours: np.ndarray, chains: Sequence[Sequence[tuple[str, float]]], weights: Sequence[float]
    ) -> np.ndarray:
        mixture = colours * np.float32(1 - sum(weights))
        for image, weight in zip(operate_all([colours] * len(chains), chains, self.look), weights, strict=True):
            mixture += image * np.float32(weight)
        return np.rint(mixture).clip(0, MAX_LEVEL).astype(np.uint8)
