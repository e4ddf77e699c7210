"""Any architecture of timm."""

from typing import Any

from tutelage.config import TimmConfig
from tutelage.errors import UserError
from tutelage.models.base import ImageClassifier, ImageSpec


class Timm(ImageClassifier):
    """The architecture that timm calls ``name``, with random weights and our linear head. Arguments: ``TimmConfig``."""

    def __init__(self, spec: ImageSpec, **arguments: Any) -> None:
        super().__init__(spec)
        config = TimmConfig.from_arguments(arguments)
        name = config.name
        import timm
        from torch import nn

        if not timm.is_model(name):
            close = timm.list_models(f"*{name.split('_', maxsplit=1)[0]}*")[:5]
            hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists them"
            raise UserError(f"model.name={name}: timm has no such architecture; {hint}")
        try:
            network = self._create(name, spec, config.stochastic_depth)
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise UserError(f"model.name={name}: timm refuses it: {' '.join(str(error).split())}") from None
        self.backbone = nn.Sequential(network, nn.Dropout(config.dropout))
        self.head = nn.Linear(getattr(network, "head_hidden_size", network.num_features), len(spec.classes))

    @staticmethod
    def _create(name: str, spec: ImageSpec, stochastic_depth: float) -> Any:
        """Return timm's network without its head, built for the spec's image size where it needs one."""
        import timm

        arguments: dict[str, Any] = {"num_classes": 0, "in_chans": spec.channels}
        if stochastic_depth:
            arguments["drop_path_rate"] = stochastic_depth
        try:
            return timm.create_model(name, img_size=spec.image_size, **arguments)
        except TypeError:  # it has no such argument: it takes any size
            return timm.create_model(name, **arguments)
