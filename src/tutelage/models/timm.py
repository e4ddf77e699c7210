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
            network = self._create(name, spec, noise)
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise UserError(f"model.name={name}: timm refuses it: {' '.join(str(error).split())}") from None
        self.backbone = nn.Sequential(network, nn.Dropout(dropout))
        self.head = nn.Linear(getattr(network, "head_hidden_size", network.num_features), len(spec.classes))

    @staticmethod
    def _create(name: str, spec: ImageSpec, noise: dict[str, Any]) -> Any:
        """Return timm's network without its head; those that are built for one image size are told ours."""
        import timm

        arguments = {"num_classes": 0, "in_chans": spec.channels, **noise}
        try:
            return timm.create_model(name, img_size=spec.image_size, **arguments)
        except TypeError:  # it takes any size
            return timm.create_model(name, **arguments)
