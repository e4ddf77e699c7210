"""Networks of finished runs, ready to be used: one of them, or several as one."""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tutelage.errors import UserError, quote_error
from tutelage.inference.images import Pictures, read_batches
from tutelage.inference.loading import LoadedNetwork, load_network
from tutelage.inference.network import PlainNetwork
from tutelage.models import ImageClassifier, evaluation_batch, tta_probabilities
from tutelage.runs.context import choose_device
from tutelage.runs.teachers import LOWER_PRECISION
from tutelage.runs.torch_setup import available_threads, set_up_torch


class Classifier:
    """One or more networks that classify pictures; of several the mean of their probabilities counts.

    Attributes:
        members: the networks.
        classes: the names of the classes, in the order of the probabilities.
        data: how pictures are read and brought to size, of all members alike.
        device: where it computes.
        batch_size: pictures that it takes at once.
        precision: that it computes in; None for float32.
    """

    def __init__(self, members: Sequence[LoadedNetwork], device: torch.device) -> None:
        """Take networks.

        Raises:
            UserError: they have other classes, or see pictures in other forms; or two classes of one share a name.
        """
        first = members[0]
        for member in members:
            repeated = [name for name, count in Counter(member.classes).items() if count > 1]
            if repeated:
                raise UserError(f"{member.source}: two of its classes are called {repeated[0]!r}; no label tells them")
        for other in members[1:]:
            if sorted(other.classes) != sorted(first.classes):
                raise UserError(f"{other.source}: its classes differ from those of {first.source}; their mean has none")
            if other.form != first.form:
                raise UserError(
                    f"{other.source}: it sees pictures as {other.describe_form()}, and {first.source} as "
                    f"{first.describe_form()}; name networks that see the same"
                )
        self.members = tuple(members)
        self.classes, self.data, self.device = first.classes, first.data, device
        self.batch_size = min(evaluation_batch(member.network) for member in members)
        self._orders = [_order_columns(member, self.classes) for member in members]
        for member in members:
            member.network.to(device)
        precisions = {member.config.trainer.precision for member in members if member.config is not None}
        has_lower = len(precisions) == 1 and device.type == "cuda"
        self.precision = LOWER_PRECISION.get(precisions.pop()) if has_lower else None

    @cached_property
    def network(self) -> PlainNetwork:
        """The network as a plain ``nn.Module`` from uint8 images (B, C', S, S) to logits (B, C).

        Raises:
            UserError: there are several, or it has no weights that can be taken away.
        """
        member = self._only_member("a network")
        return PlainNetwork.of(member.network, member.columns)

    def predict(self, pictures: Pictures) -> list[str]:
        """Return the class of each picture: the name of the one with the largest probability.

        Args:
            pictures: one, or several: files; images of Pillow; arrays (H, W), (H, W, C) or (N, H, W, C) uint8, C being
                1, 3, or 4 with transparency; tensors (C, H, W) or (N, C, H, W) uint8, C being 1 or 3. They are read
                and brought to size as the run's own were.

        Raises:
            UserError: a file cannot be read, or an array is no uint8 image.
        """
        return [self.classes[column] for column in self.probabilities(pictures).argmax(axis=1).tolist()]

    def probabilities(self, pictures: Pictures) -> np.ndarray:
        """Return the probabilities (N, C) float32 of pictures (see ``predict``), in the order of ``classes``.

        Raises:
            UserError: as in ``predict``.
        """
        batches = read_batches(pictures, self.data, self.batch_size)
        return _join(list(map(self.compute_probabilities, batches)), len(self.classes))

    def embed(self, pictures: Pictures) -> np.ndarray:
        """Return the features (N, D) float32 of pictures (see ``predict``): what the network's head gets.

        Raises:
            UserError: as in ``predict``; or there are several networks.
        """
        self._only_member("features")
        return _join(list(map(self.compute_features, read_batches(pictures, self.data, self.batch_size))), 0)

    def compute_probabilities(self, images: Tensor, views: str = "one") -> Tensor:
        """Return probabilities (B, C) float32, on the CPU, of images (B, C', S, S) uint8.

        Args:
            images: as they are read.
            views: that are averaged, a name of ``TTA_VIEWS``.
        """
        return self.compute(images, views)[0]

    def compute_features(self, images: Tensor) -> Tensor:
        """Return features (B, D) float32, on the CPU, of images (B, C', S, S) uint8.

        Raises:
            UserError: there are several networks.
        """
        network = self._only_member("features").network
        with torch.inference_mode(), self._autocast():
            return network.features(images.to(self.device, non_blocking=True)).float().cpu()

    def compute(self, images: Tensor, views: str = "one", with_features: bool = False) -> tuple[Tensor, Tensor | None]:
        """Return probabilities (B, C) and features (B, D), float32, on the CPU, of images (B, C', S, S) uint8.

        Args:
            images: as they are read.
            views: whose probabilities are averaged, a name of ``TTA_VIEWS``; the features are those of the first view.
            with_features: whether features are wanted; else they are None.

        Raises:
            UserError: a network's answers are not finite; or features of several networks are wanted.
        """
        if with_features:
            self._only_member("features")
        features: list[Tensor] = []

        def compute_logits(network: ImageClassifier, columns: Sequence[int], view: Tensor) -> Tensor:
            of_view = network.features(view)
            if with_features and not features:
                features.append(of_view.float().cpu())
            logits: Tensor = network.head(of_view)
            return logits[:, columns]

        with torch.inference_mode(), self._autocast():
            on_device, probabilities = images.to(self.device, non_blocking=True), []
            for member, order in zip(self.members, self._orders, strict=True):
                of_member = tta_probabilities(partial(compute_logits, member.network, order), on_device, views).cpu()
                if not of_member.isfinite().all():
                    raise UserError(f"{member.source}: its answers are not finite numbers; its weights are unusable")
                probabilities.append(of_member)
        return torch.stack(probabilities).mean(dim=0), features[0] if features else None

    def _only_member(self, thing: str) -> LoadedNetwork:
        if len(self.members) > 1:
            raise UserError(f"{len(self.members)} runs: {thing} is of one run; name one")
        return self.members[0]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision is not None)


def load_networks(
    sources: Sequence[str | Path], stage: str | None = None, task: int | None = None, device: str | None = None
) -> Classifier:
    """Return the networks of finished runs, or of files of theirs, as one classifier.

    Args:
        sources: runs' folders, or checkpoints such as ``best.ckpt``.
        stage: the name of the stage whose network is meant; None for the last one. Not for files.
        task: of a network with several heads the one that is meant, from 1; None where there is one.
        device: cpu, cuda, ...; None for the one that the run would train on.

    Raises:
        UserError: there is no such network.
    """
    members = [load_network(str(source), stage, task) for source in sources]
    config = members[0].config
    if device is not None:
        chosen = _parse_device(device)
    elif config is not None:
        chosen = choose_device(config, 0)
    else:
        chosen = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Classifier(members, chosen)


def _parse_device(name: str) -> torch.device:
    """Return the device of a name.

    Raises:
        UserError: there is none.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device={name}: {quote_error(error)}; name cpu, or a GPU that torch sees, such as cuda"
        ) from None
    return device


def set_up_inference(classifier: Classifier) -> None:
    """Set what decides the bits of probabilities, for the whole process, as the (first) run's config has it."""
    config = classifier.members[0].config
    set_up_torch((config and config.trainer.threads) or available_threads(1))


def _join(batches: Sequence[Tensor], width: int) -> np.ndarray:
    """Return the rows of batches (B, D) float32 as one array (N, D); (0, ``width``) where there is none."""
    return torch.cat(list(batches)).numpy() if batches else np.empty((0, width), np.float32)


def _order_columns(member: LoadedNetwork, classes: Sequence[str]) -> list[int]:
    """Return for each of the classes the column of a member's logits."""
    columns = range(len(member.classes)) if member.columns is None else member.columns
    column_of = dict(zip(member.classes, columns, strict=True))
    return [column_of[name] for name in classes]
