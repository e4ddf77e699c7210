"""RandAugment, TrivialAugment and AugMix for uint8 images: which operations are drawn, how many, and how strong.

They replace torchvision.transforms.v2's transforms of these names, because their draws are keyed, for a whole batch at
once, and because they work on numpy arrays with OpenCV. Every drawn operation is applied, and a larger magnitude never
changes an image less.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, Field

from tutelage.augmentation.chains import Chain, apply_chain, apply_chains
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
    OperationSettings,
    Ranges,
)

MAX_MAGNITUDE = 30  # torchvision's 31 bins
AUGMIX_BINS = 10
AUGMIX_MAX_DEPTH = 3  # a drawn depth is 1, 2 or 3 operations in a chain
AUGMIX_MIN_LEVEL = 0.1  # so that no operation is without effect
NUMBERS_PER_OPERATION = 3  # random numbers: for the operation, its sign and its magnitude
AUGMIX_OPERATIONS = tuple(  # those that are no part of ImageNet-C's corruptions (Hendrycks et al. 2020, section 3)
    name for name in OPERATIONS if name not in {"Identity", "Brightness", "Color", "Contrast", "Sharpness"}
)


def _check_names(names: Sequence[str] | None) -> Sequence[str] | None:
    unknown = sorted(set(names or ()) - set(OPERATIONS))
    if unknown or (names is not None and not names):
        problem = f"{unknown[0]} is not an operation" if unknown else "the list is empty"
        raise ValueError(f"{problem}; choose from {', '.join(OPERATIONS)}")
    return names


Names = Annotated[Sequence[str] | None, AfterValidator(_check_names)]
Level = Annotated[float, Field(ge=0, le=MAX_LEVEL)]


class _OperationTransform(albumentations.ImageOnlyTransform):  # type: ignore[misc]
    """Base of RandAugment, TrivialAugment and AugMix: their operations, applied to the colours of an image."""

    ranges: Ranges

    class InitSchema(albumentations.BasicTransform.InitSchema):  # type: ignore[misc]
        """The allowed ranges of the arguments, as Albumentations checks them."""

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
        colour = (fill,) * RGB if isinstance(fill, (int, float)) else tuple(fill)
        self.settings = OperationSettings(self.ranges, colour, interpolation)
        self._signed = np.array([name in SIGNED for name in self.operations])

    def choose_operations(self, numbers: np.ndarray, strengths: np.ndarray) -> list[list[tuple[str, float]]]:
        """Return chains of operations, chosen uniformly, with a random sign for those that have one.

        Args:
            numbers: (B, N, 2) float64 in [0, 1): for the operation and for its sign.
            strengths: (B, N) float64, without a sign.
        """
        chosen = (numbers[..., 0] * len(self.operations)).astype(np.int64)
        signed = np.where(self._signed[chosen] & (numbers[..., 1] < 0.5), -strengths, strengths)  # noqa: PLR2004
        names = self.operations
        return [
            [(names[n], strength) for n, strength in zip(*chain, strict=True)]
            for chain in zip(chosen.tolist(), signed.tolist(), strict=True)
        ]

    def apply_operation(self, image: np.ndarray, name: str, magnitude: float) -> np.ndarray:
        """Return ``image`` (H, W, C) uint8 after one operation at a magnitude from 0 to 30, with a positive sign."""
        chain = [(name, magnitude / MAX_MAGNITUDE)]
        return change_colours(image, lambda colours: apply_chain(colours, chain, self.settings))


def change_colours(image: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return ``image`` (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) with its colours changed; alpha stays unchanged."""
    if image.ndim == RGB and image.shape[-1] == RGB + 1:
        return np.concatenate([change(np.ascontiguousarray(image[..., :RGB])), image[..., RGB:]], axis=-1)
    return change(np.ascontiguousarray(image).reshape(*image.shape[:2], -1)).reshape(image.shape)


class _ChainTransform(_OperationTransform):
    """A transform that applies one chain of operations."""

    number_count: int  # random numbers that the chain of one image takes

    @abstractmethod
    def choose_chains(self, numbers: np.ndarray) -> list[list[tuple[str, float]]]:
        """Return the chain of each image from its numbers (B, ``number_count``) float64 in [0, 1)."""

    def get_params(self) -> dict[str, Any]:
        """Draw the chain of one image."""
        numbers = [self.py_random.random() for _ in range(self.number_count)]
        return {"chain": self.choose_chains(np.array([numbers]))[0]}

    def apply(self, img: np.ndarray, chain: Chain, **_: Any) -> np.ndarray:
        """Return ``img`` (H, W, C) uint8 after the operations of a chain."""
        return change_colours(img, lambda colours: apply_chain(colours, chain, self.settings))


class RandAugment(_ChainTransform):
    """``num_ops`` operations in sequence, drawn uniformly, all at one magnitude (Cubuk et al. 2020).

    Args:
        num_ops: number of operations, N in the paper.
        magnitude: strength of the operations, M in the paper: linear from 0 to 30, on torchvision's table of 31 bins.
        magnitude_std: each operation's magnitude is drawn from a normal distribution about ``magnitude`` with this
            standard deviation and clipped to 0 and 30; 0 gives all the same magnitude.
        operations: names of the operations to draw from; None for the paper's 14.
        fill: the value of pixels that come from outside the image, or one value for each of three channels.
        interpolation: nearest or bilinear, used where images are rotated or sheared.
        p: the probability that the transform is applied at all.
    """

    ranges = RANDAUGMENT

    class InitSchema(_OperationTransform.InitSchema):
        """The allowed ranges of the arguments, as Albumentations checks them."""

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
        self.number_count = num_ops * NUMBERS_PER_OPERATION

    def choose_chains(self, numbers: np.ndarray) -> list[list[tuple[str, float]]]:
        """Return the chain of each image from its numbers (B, 3 ``num_ops``) float64 in [0, 1)."""
        numbers = numbers.reshape(len(numbers), self.num_ops, NUMBERS_PER_OPERATION)
        magnitudes = np.full(numbers.shape[:2], self.magnitude, dtype=np.float64)
        if self.magnitude_std:
            from scipy.special import ndtri

            magnitudes = np.clip(magnitudes + self.magnitude_std * ndtri(numbers[..., 2]), 0, MAX_MAGNITUDE)
        return self.choose_operations(numbers[..., :2], magnitudes / MAX_MAGNITUDE)


class TrivialAugment(_ChainTransform):
    """One operation, drawn uniformly, at a magnitude drawn uniformly from 0 to 30 (Mueller and Hutter 2021).

    Args:
        operations: names of the operations to draw from; None for all 14.
        fill: the value of pixels that come from outside the image, or one value for each of three channels.
        interpolation: nearest or bilinear, used where images are rotated or sheared.
        p: the probability that the transform is applied at all.
    """

    ranges = WIDE
    number_count = NUMBERS_PER_OPERATION

    def __init__(
        self,
        operations: Sequence[str] | None = None,
        fill: float | Sequence[float] = 0,
        interpolation: Interpolation = "nearest",
        p: float = 1.0,
    ) -> None:
        super().__init__(operations, fill, interpolation, p)

    def choose_chains(self, numbers: np.ndarray) -> list[list[tuple[str, float]]]:
        """Return the operation of each image from its numbers (B, 3) float64 in [0, 1)."""
        magnitudes = np.floor(numbers[:, 2:] * (MAX_MAGNITUDE + 1))
        return self.choose_operations(numbers[:, None, :2], magnitudes / MAX_MAGNITUDE)


class AugMix(_OperationTransform):
    """Chains of operations, mixed with each other and with the image (Hendrycks et al. 2020, algorithm 1).

    Args:
        severity: the largest level of an operation, 1 to 10; each is drawn uniformly below it.
        width: number of chains.
        depth: operations in a chain; 0 draws 1 to 3 for each.
        alpha: parameter of the Dirichlet distribution of the chains' weights and of the Beta distribution of their sum.
        operations: names of the operations to draw from; None for the paper's 9.
        fill: the value of pixels that come from outside the image, or one value for each of three channels.
        interpolation: nearest or bilinear, used where images are rotated or sheared.
        p: the probability that the transform is applied at all.
    """

    ranges = AUGMIX

    class InitSchema(_OperationTransform.InitSchema):
        """The allowed ranges of the arguments, as Albumentations checks them."""

        severity: float = Field(ge=AUGMIX_MIN_LEVEL, le=AUGMIX_BINS)
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
        """Draw the chains and their weights, whose sum is at most 1; the image itself has the rest."""
        rng = self.py_random
        gammas = [rng.gammavariate(self.alpha, 1) for _ in range(self.width)]  # over their sum: Dirichlet
        share = rng.betavariate(self.alpha, self.alpha)
        chains = []
        for _ in gammas:
            depth = self.depth or 1 + int(rng.random() * AUGMIX_MAX_DEPTH)
            numbers = np.array([[rng.random() for _ in range(NUMBERS_PER_OPERATION)] for _ in range(depth)])
            levels = AUGMIX_MIN_LEVEL + (self.severity - AUGMIX_MIN_LEVEL) * numbers[:, 2]
            chains += self.choose_operations(numbers[None, :, :2], levels[None] / AUGMIX_BINS)
        return {"chains": chains, "weights": [share * gamma / sum(gammas) for gamma in gammas]}

    def apply(self, img: np.ndarray, chains: Sequence[Chain], weights: Sequence[float], **_: Any) -> np.ndarray:
        """Return the mixture (H, W, C) uint8 of ``img`` and its chains' results."""
        return change_colours(img, lambda colours: self._mix_chains(colours, chains, weights))

    def _mix_chains(self, colours: np.ndarray, chains: Sequence[Chain], weights: Sequence[float]) -> np.ndarray:
        mixture = colours * np.float32(1 - sum(weights))
        for image, weight in zip(apply_chains([colours] * len(chains), chains, self.settings), weights, strict=True):
            mixture += image * np.float32(weight)
        return np.rint(mixture).clip(0, MAX_LEVEL).astype(np.uint8)
