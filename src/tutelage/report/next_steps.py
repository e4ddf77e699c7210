"""What to try next: rules over the record of a run, each with what to add to its command."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tutelage.config import Config, NearestNeighboursConfig
from tutelage.data import are_uneven
from tutelage.terminal.intervals import Interval, format_percent

MAX_SUGGESTIONS = 4
OVERCONFIDENT = 0.03  # by which confidence is above accuracy, beyond the interval of which it is too
KNOWN_BY_HEART, BELOW_TRAINING = 0.98, 0.10  # accuracy on the training images, and how far the test's is below it
UNDERFIT = 0.90  # accuracy on the training images, below it
FEW_LABELS = 100  # a class: from them alone a network rarely learns features
LARGE_POOL = 2  # times the labels
WIDE_INTERVAL = 0.08
UNEVEN_LOSS = 0.03  # by which the mean over classes is below the mean over images
SMOOTHING = 0.1  # Szegedy et al. 2016
SEEDS = "0,1,2,3,4"


@dataclass(frozen=True)
class Suggestion:
    """What to try next: why, and what to add to the run's command; or the command that takes its place."""

    reason: str
    override: str
    is_command: bool = False


@dataclass(frozen=True)
class Outcome:
    """What the rules are about.

    Attributes:
        config: of the run.
        record: the content of ``run.json``.
        accuracy: on the test images, with its interval; None where there is none.
        confidence: the mean probability of the answers to the test images.
        gain: over the control, with its interval; None without a control.
        pool: the number of images without labels.
        has_own_test: the data came with a test set, rather than that a part of the labelled images became it.
        counts: the labelled images of each class.
    """

    config: Config
    record: Mapping[str, Any]
    accuracy: Interval | None = None
    confidence: float = 0.0
    gain: Interval | None = None
    pool: int = 0
    has_own_test: bool = True
    counts: list[int] = field(default_factory=list)

    @property
    def train_accuracy(self) -> float | None:
        """The run's network on its augmented training images; None where that was not measured."""
        value = self.record["result"].get("train/accuracy")
        return None if value is None else float(value)

    @property
    def labels(self) -> int:
        """The number of labelled images."""
        return sum(self.counts)

    @property
    def learns_by_steps(self) -> bool:
        """Whether the network is trained by an optimizer."""
        return not isinstance(self.config.model, NearestNeighboursConfig)


def suggest(outcome: Outcome) -> list[Suggestion]:
    """Return what to try next, the most promising first."""
    found = [suggestion for rule in RULES if (suggestion := rule(outcome)) is not None]
    return found[:1] if outcome.config.debug is not None and found else found[:MAX_SUGGESTIONS]


def _leave_debugging(outcome: Outcome) -> Suggestion | None:
    if outcome.config.debug is None:
        return None
    typed = f"debug={outcome.config.debug}"
    command = " ".join(word for word in str(outcome.record["command"]).split(" ") if word != typed)
    return Suggestion(
        f"{typed} shrank this run: its numbers say that everything works, and no more.", command, is_command=True
    )


def _start_from_weights(outcome: Outcome) -> Suggestion | None:
    """A recipe chooses pretrained weights for the user's own photographs."""
    config, classes = outcome.config, max(1, len(outcome.counts))
    is_scratch = config.init_from is None and outcome.learns_by_steps
    if not is_scratch or config.recipe is None or config.data.channels == 1 or outcome.labels >= FEW_LABELS * classes:
        return None
    return Suggestion(
        f"{outcome.labels / classes:.0f} labels a class are few to learn from random weights; a network that has "
        "learned from a million other photographs needs fewer.",
        "recipe=photos_small",
    )


def _use_the_pool(outcome: Outcome) -> Suggestion | None:
    """A run of one stage that learned from its labels alone."""
    stages, is_scratch = outcome.record["stages"], outcome.config.init_from is None
    is_from_labels = len(stages) == 1 and is_scratch and "train/loss_pool" not in stages[0]["result"]
    if not is_from_labels or not outcome.learns_by_steps or outcome.pool < LARGE_POOL * outcome.labels:
        return None
    return Suggestion(
        f"{outcome.pool:,} images without labels were not used; a noisy student learns from them too.",
        "strategy=noisy_student",
    )


def _augment_more(outcome: Outcome) -> Suggestion | None:
    train, accuracy = outcome.train_accuracy, outcome.accuracy
    if train is None or accuracy is None or train < KNOWN_BY_HEART or train - accuracy.value < BELOW_TRAINING:
        return None
    targets = [str(transform["_target_"]) for transform in outcome.config.augmentation.transforms]
    is_strong = any(target.endswith("RandAugment") for target in targets)
    text = (
        f"It knows its training images by heart ({format_percent(train)} right) and gets "
        f"{format_percent(accuracy.value)} of the test images: label more"
    )
    if is_strong or not outcome.learns_by_steps:
        return None
    return Suggestion(f"{text}, or show it more varied views.", "augmentation=randaugment")


def _train_longer(outcome: Outcome) -> Suggestion | None:
    train, schedule = outcome.train_accuracy, outcome.config.schedule
    if train is None or train >= UNDERFIT or not outcome.learns_by_steps:
        return None
    steps, epochs = schedule.steps, schedule.epochs or 1
    length = f"schedule.steps={2 * steps}" if steps else f"schedule.epochs={2 * epochs:g}"
    return Suggestion(
        f"It gets only {format_percent(train)} of its training images right: let it learn longer.", length
    )


def _balance_classes(outcome: Outcome) -> Suggestion | None:
    result = outcome.record["result"]
    balanced, accuracy = result.get("test/balanced_accuracy"), result.get("test/accuracy")
    if outcome.config.data.balance != "none" or not are_uneven(outcome.counts) or not outcome.learns_by_steps:
        return None
    if balanced is None or accuracy is None or accuracy - balanced < UNEVEN_LOSS:
        return None
    return Suggestion(
        f"Rare classes do worse: {format_percent(balanced)} as the mean over classes, {format_percent(accuracy)} over "
        "images; weigh each class alike.",
        "data.balance=weights",
    )


def _smooth_labels(outcome: Outcome) -> Suggestion | None:
    config, accuracy = outcome.config, outcome.accuracy
    if accuracy is None or outcome.confidence <= max(accuracy.high, accuracy.value + OVERCONFIDENT):
        return None
    if getattr(config.loss, "label_smoothing", None) != 0 or not outcome.learns_by_steps:
        return None
    return Suggestion(
        f"It is too sure of itself: {format_percent(outcome.confidence)} confident on average, and right "
        f"{100 * (outcome.confidence - accuracy.value):.0f} points less often. Smoothed labels make it more honest.",
        f"loss.label_smoothing={SMOOTHING}",
    )


def _fold(outcome: Outcome) -> Suggestion | None:
    """Without a test set of its own every labelled image can be tested once."""
    accuracy, data = outcome.accuracy, outcome.config.data
    if accuracy is None or accuracy.high - accuracy.low < WIDE_INTERVAL or outcome.has_own_test or data.folds:
        return None
    return Suggestion(
        f"{outcome.record['data']['test']:,} test images leave an interval {100 * (accuracy.high - accuracy.low):.0f} "
        "points wide; cross-validation tests on every labelled image, in five runs.",
        "-m data.folds=5 'data.fold=range(5)'",
    )


def _repeat(outcome: Outcome) -> Suggestion | None:
    gain = outcome.gain
    if gain is None or gain.low > 0 or gain.high < 0:
        return None
    return Suggestion(
        f"The gain over the control, {100 * gain.low:+.1f} to {100 * gain.high:+.1f} points, may be chance: repeat it "
        "with other seeds.",
        f"-m seed={SEEDS}",
    )


RULES: tuple[Callable[[Outcome], Suggestion | None], ...] = (
    _leave_debugging,
    _start_from_weights,
    _use_the_pool,
    _augment_more,
    _train_longer,
    _balance_classes,
    _smooth_labels,
    _repeat,
    _fold,
)
