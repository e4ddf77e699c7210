"""The base of all strategies' configs. A strategy is named by its ``_target_``; the schema lists none."""

import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, SerializeAsAny

from tutelage.config.section import FOLDER_NAME, Targeted
from tutelage.config.targets import failures_as_user_errors, resolve

if TYPE_CHECKING:
    from tutelage.config.schema import Config

TARGET_KEY = "strategy._target_"


class Strategy(Targeted):
    """How labels are used. A subclass's fields are the keys of ``strategy``; it is best in a module without torch.

    Attributes:
        name: the strategy's name in messages and run folders; by default that of the class in snake case, without
            "Strategy".
        takes_one_pass: whether ``model`` may be a network that learns in one pass, without an optimizer.
        takes_two_views: whether it compares a weak and a strong view of an image (``augmentation.strong``).
    """

    name: ClassVar[str]
    takes_one_pass: ClassVar[bool] = False
    takes_two_views: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        """Set the name, where the class does not."""
        super().__init_subclass__(**options)
        if "name" not in cls.__dict__:
            words = cls.__name__.removesuffix("Strategy") or cls.__name__
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", words).lower()
        if not FOLDER_NAME.fullmatch(cls.name):
            raise ValueError(f"{cls.__name__}.name={cls.name!r}: letters, digits, '-' and '_' make a strategy's name")

    def check(self, config: "Config") -> None:
        """Check what the strategy asks of the other groups, before data is read and torch is imported.

        Raises:
            ValueError: they do not go together; the message is shown to the user.
        """

    def identity(self, config: "Config") -> dict[str, Any]:
        """Return the strategy's part of a run's identity: its keys that are not at their default.

        A key that has no effect beside the others is best left out.
        """
        return self.model_dump(mode="json", exclude_defaults=True)

    @abstractmethod
    def stages(self, context: Any) -> Sequence[Any]:
        """Return the stages: a sequence of ``TrainStage`` and ``PseudoLabelStage``.

        It is called again after each stage, with the results so far; up to the last finished stage the list must stay
        the same.

        Args:
            context: a ``StageContext``: the whole config, the data, its splits, the results of finished stages.

        Raises:
            UserError: the data does not fit the strategy.
        """

    @property
    def given_teachers(self) -> Sequence[str]:
        """Finished runs, and files of weights, that the config names as teachers."""
        return ()

    @property
    def task_classes(self) -> Sequence[Sequence[int]]:
        """The classes of each head of the networks, for several heads; empty for networks with a single one."""
        return ()

    @property
    def adds_task(self) -> bool:
        """Whether the network of ``init_from`` keeps its head, and the data's classes get one beside it."""
        return False

    @property
    def takes_one_class(self) -> bool:
        """Whether data of a single class are enough; the class then comes to those of ``init_from``'s network."""
        return False


def _parse_strategy(value: Any) -> Any:
    """Return the strategy whose class ``_target_`` names, with its keys validated."""
    if isinstance(value, Strategy):
        return value
    if not isinstance(value, dict) or not isinstance(value.get("_target_"), str):
        raise ValueError(
            "strategy._target_ names the class of a strategy: choose an option such as strategy=supervised, or give it "
            "in your own YAML"
        )
    cls: Any = resolve(value["_target_"], Strategy, TARGET_KEY)
    with failures_as_user_errors(cls, f"{TARGET_KEY}: {cls.__name__}", expected=(ValueError,)):
        return cls.model_validate(value)


AnyStrategy = Annotated[SerializeAsAny[Strategy], BeforeValidator(_parse_strategy)]
