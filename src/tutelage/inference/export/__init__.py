"""Networks as files that need no Tutelage: ONNX, torch.export, safetensors, and the layout of timm and the Hub."""

from tutelage.inference.export.exporting import FORMATS, Exported, export_network
from tutelage.inference.export.weights import read_safetensors

__all__ = ["FORMATS", "Exported", "export_network", "read_safetensors"]
