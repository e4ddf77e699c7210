"""Any architecture of timm."""

from typing import Any

from tutelage.errors import UserError
from tutelage.models.base import ImageClassifier, ImageSpec


class Timm(ImageClassifier):
    """The architecture that timm knows as ``name``, from random weights, with a linear head of our own."""

    def __init__(self, spec: ImageSpec, *, name: str, dropout: float = 0.0, stochastic_depth: float = 0.0) -> None:
        super().__init__(spec)
        import timm
        from torch import nn

        if not timm.is_model(name):
            close = timm.list_models(f"*{name.split('_', maxsplit=1)[0]}*")[:5]
            hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists them"
            raise UserError(f"model.name={name}: timm has no such architecture; {hint}")
        noise: dict[str, Any] = {"drop_path_rate": stochastic_depth} if stochastic_depth else {}
        try:
            network: Any = timm.create_model(name, num_classes=0, in_chans=spec.channels, **noise)
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise UserError(f"model.name={name}: timm refuses it: {' '.join(str(error).split())}") from None
        self.backbone = nn.Sequential(network, nn.Dropout(dropout))
        self.head = nn.Linear(network.num_features, len(spec.classes))
