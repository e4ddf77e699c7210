"""Networks as graphs of operations, normalisation included: ONNX, and torch.export's own files."""

import io
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from tutelage.inference.export.formats import (
    IMAGES,
    LOGITS,
    PROBABILITIES,
    Format,
    LoadedFiles,
    quietly,
    refuse_network,
)
from tutelage.inference.network import PlainNetwork
from tutelage.models import ImageClassifier

CLASSES = "classes"  # the key in a file's metadata: a JSON list of names, in the order of the logits
CLASSES_FILE = "classes.json"  # the same within a file of torch.export
EXAMPLES = 2  # images that a graph is traced with; of one image alone, torch takes the batch's size to be fixed
ERRORS_ONLY = 3  # the severity of messages that onnxruntime prints


class WithProbabilities(nn.Module):
    """A network that gives probabilities (B, C), then logits (B, C)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return both for images (B, C', S, S) uint8."""
        logits: Tensor = self.network(images)
        return logits.softmax(dim=1), logits


class Onnx(Format):
    """A graph with a dynamic batch: ``images`` (B, C', S, S) uint8 to ``probabilities`` and ``logits`` (B, C)."""

    name, file, library = "onnx", "model.onnx", "onnxruntime"
    packages = ("onnx", "onnxscript", "onnxruntime")
    usage = """import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
probabilities, logits = session.run(None, {"images": picture[None]})"""

    def write(self, network: ImageClassifier, fit: str, folder: Path) -> None:
        """Write ``model.onnx``; the classes are in its metadata."""
        plain = WithProbabilities(PlainNetwork.of(network)).eval()
        try:
            with quietly(), torch.no_grad():
                program = torch.onnx.export(
                    plain,
                    (_example(network),),
                    dynamo=True,
                    verbose=False,
                    input_names=[IMAGES],
                    output_names=[PROBABILITIES, LOGITS],
                    dynamic_shapes=({0: Dim.DYNAMIC},),
                )
                if program is None:
                    raise TypeError("torch.onnx.export returned nothing")
                program.model.metadata_props[CLASSES] = json.dumps(network.spec.classes)
                program.save(str(folder / self.file))
        except Exception as error:  # torch's exporter raises errors of many kinds
            raise refuse_network(self.name, error) from None

    def load(self, folder: Path) -> LoadedFiles:
        """Return what a session of onnxruntime computes, on the CPU, and the classes of the metadata."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        session = onnxruntime.InferenceSession(folder / self.file, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        classes = tuple(json.loads(session.get_modelmeta().custom_metadata_map[CLASSES]))
        return LoadedFiles(classes, lambda images: dict(zip(names, session.run(names, {IMAGES: images}), strict=True)))


class Pt2(Format):
    """A program of torch.export with a dynamic batch: images (B, C', S, S) uint8 to logits (B, C)."""

    name, file, library = "pt2", "model.pt2", "pytorch"
    usage = """import torch

network = torch.export.load("model.pt2").module()
logits = network(torch.from_numpy(picture)[None]).detach().numpy()"""

    def write(self, network: ImageClassifier, fit: str, folder: Path) -> None:
        """Write ``model.pt2``; the classes are an extra file within it."""
        try:
            with quietly(), torch.no_grad():
                program = torch.export.export(
                    PlainNetwork.of(network), (_example(network),), dynamic_shapes=({0: Dim.DYNAMIC},)
                )
                self._save(program, network.spec.classes, folder / self.file)
        except Exception as error:  # torch's exporter raises errors of many kinds
            raise refuse_network(self.name, error) from None

    @staticmethod
    def _save(program: ExportedProgram, classes: tuple[str, ...], file: Path) -> None:
        content = io.BytesIO()  # where torch writes to a disk itself, a full one ends the whole process
        torch.export.save(program, content, extra_files={CLASSES_FILE: json.dumps(classes)})
        file.write_bytes(content.getbuffer())

    def load(self, folder: Path) -> LoadedFiles:
        """Return what the program's module computes, and the classes of the extra file."""
        extra_files = {CLASSES_FILE: ""}  # torch fills the values in
        with quietly():
            module = torch.export.load(folder / self.file, extra_files=extra_files).module()

        def compute(images: np.ndarray) -> dict[str, np.ndarray]:
            with torch.no_grad():
                return {LOGITS: module(torch.from_numpy(images)).numpy()}

        return LoadedFiles(tuple(json.loads(extra_files[CLASSES_FILE])), compute)


def _example(network: ImageClassifier) -> Tensor:
    """Return images of zeros."""
    spec = network.spec
    return torch.zeros(EXAMPLES, spec.channels, spec.image_size, spec.image_size, dtype=torch.uint8)
