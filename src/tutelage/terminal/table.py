"""The table at the end of a run, built from ``run.json`` alone. Needs no torch."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tutelage.config import MONITORS
from tutelage.data import OLD_CLASSES, UNEVEN_RATIO, WITHOUT_DUPLICATES, abbreviate
from tutelage.runs import PSEUDO_LABEL, is_tested, main_stage_name, train_entries
from tutelage.runs.code import describe_other_code
from tutelage.runs.summary import describe_network
from tutelage.terminal.columns import TEST, has_tasks, list_metrics, read_monitor, task_accuracies
from tutelage.terminal.intervals import CONFIDENCE_LEVEL, NO_VALUE, format_accuracy, format_percent, wilson_interval

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

HEADER = ("stage", "network", "weights", "steps", "labels")
PSEUDO_LABEL_HEADER = ("pseudo", "right")
CHANGED_HEADER = "changed"
CHANGED_NOTE = "changed: the share of the pool that the teacher labels differently than in the round before"
POOL_CHANGED = "pool/changed"
UNEVEN_NOTE = (
    "balanced: the mean over the classes of the accuracy within each; F1: macro F1; both stand where a class has more "
    f"than {UNEVEN_RATIO} times another's images, or where one selects the weights."
)
GIVEN_TEACHER = "teacher (given)"
FORGETTING_HEADER = "forgets"
MAX_WIDTH = 1000  # characters
TASKS_NOTE = (
    "task 1, task 2 ...: accuracy among the task's own classes, on its test images; forgets: points of accuracy lost "
    "on earlier tasks since each was learned, as a mean."
)


def build_header(record: Mapping[str, Any], wide: bool = True) -> tuple[str, ...]:
    """Return the headings of the columns; a run that learned tasks has one per task and none for the whole test set.

    A wide table also has the share of pseudo-labels that changed since the round before, if there was one, and balanced
    accuracy and F1 where classes are uneven.
    """
    headings = [metric.heading for metric in list_metrics(record, wide)]
    if has_tasks(record):
        return (*HEADER, *headings, FORGETTING_HEADER)
    changed = (CHANGED_HEADER,) if wide and _has_changes(record) else ()
    return (*HEADER, *(PSEUDO_LABEL_HEADER if _has_pseudo_labels(record) else ()), *changed, *headings)


def build_rows(record: Mapping[str, Any], wide: bool = True) -> list[tuple[str, ...]]:
    """Return one row per given teacher and trained network: what it was trained on, and its accuracies."""
    table = [_build_teacher_row(record, teacher, wide) for teacher in record.get("given_teachers", [])]
    pool_result: Mapping[str, Any] = {}  # of the pseudo-labels that the next student is trained on
    for entry in record["stages"]:
        result = entry["result"]
        if entry["kind"] == PSEUDO_LABEL:
            pool_result = result
            continue
        count = f"{pool_result['pool/kept']:,.0f}" if pool_result else NO_VALUE
        pseudo_labels = (count, format_percent(pool_result.get("pool/right")))
        table.append(
            (
                entry["name"],
                describe_network(entry["model"]),
                f"{entry['parameters']:,}",
                f"{entry['steps']:,}",
                f"{entry['labels']:,}",
                *(pseudo_labels if _has_pseudo_labels(record) else ()),
                *((format_percent(pool_result.get(POOL_CHANGED)),) if wide and _has_changes(record) else ()),
                *_format_metrics(record, result, wide),
                *((_format_points(compute_forgetting(record, entry)),) if has_tasks(record) else ()),
            )
        )
        pool_result = {}
    return table


def _build_teacher_row(record: Mapping[str, Any], teacher: Mapping[str, Any], wide: bool) -> tuple[str, ...]:
    """Return the row of a teacher that the run was given; it has no values in columns on training."""
    models = teacher["models"]
    network = describe_network(models[0]) if len(models) == 1 else f"{len(models)} networks"
    cells = [GIVEN_TEACHER, network, f"{teacher['parameters']:,}"]
    metrics = _format_metrics(record, teacher["result"], wide)
    forgets = [NO_VALUE] if has_tasks(record) else []
    blank = len(build_header(record, wide)) - len(cells) - len(metrics) - len(forgets)
    return (*cells, *[NO_VALUE] * blank, *metrics, *forgets)


def _format_metrics(record: Mapping[str, Any], result: Mapping[str, float], wide: bool) -> list[str]:
    """Return the cells of the columns of metrics; in a wide table the test accuracy has its interval."""
    images = _test_images(record) if wide else None
    return [
        _format_with_interval(result.get(metric.key), images if metric.key == TEST else None)
        for metric in list_metrics(record, wide)
    ]


def _test_images(record: Mapping[str, Any]) -> int | None:
    """Return the number of test images, on which each network was measured; None where it is not known."""
    count = record.get("data", {}).get("test")
    return None if not count else int(count)


def compute_forgetting(record: Mapping[str, Any], entry: Mapping[str, Any]) -> float | None:
    """Return the mean accuracy that a network has lost on all tasks but its last; None if it has learned only one."""
    losses = measure_losses(record, entry)
    return sum(losses.values()) / len(losses) if losses else None


def measure_losses(record: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[int, float]:
    """Return the accuracy that a network has lost on each task but its last, by the task's number.

    The loss of a task is measured from the stage that ended with it as the last task learned: the latest such stage
    among those that lead to the network.
    """
    stages = {other["name"]: other for other in record["stages"]}
    history, stage = [], stages.get(entry["name"])  # accuracies by task, from the network back to the first stage
    while stage is not None:
        history.append(task_accuracies(stage["result"]))
        stage = stages.get(stage.get("starts_from", ""))
    final, losses = task_accuracies(entry["result"]), {}
    for task in sorted(final)[:-1]:  # a task of init_from has no such stage: it counts from the first one
        learned = next((accuracies for accuracies in history if max(accuracies, default=0) == task), history[-1])
        losses[task] = learned.get(task, final[task]) - final[task]
    return losses


def _has_pseudo_labels(record: Mapping[str, Any]) -> bool:
    return any(entry["kind"] == PSEUDO_LABEL for entry in record["stages"])


def _has_changes(record: Mapping[str, Any]) -> bool:
    """Return whether the record says how many pseudo-labels changed from one round to the next."""
    return any(POOL_CHANGED in entry["result"] for entry in record["stages"])


def _has_others(record: Mapping[str, Any]) -> bool:
    """Return whether a test set was also measured without the images that are learned from."""
    return any(WITHOUT_DUPLICATES in key for entry in record["stages"] for key in entry["result"])


def build_notes(record: Mapping[str, Any], wide: bool = True) -> list[str]:
    """Return the notes below the table."""
    lines = []
    left_out = record.get("data", {}).get("left_out", [])
    if left_out:
        lines.append(f"Data: unreadable files left out: {len(left_out):,} (run.json names them).")
    if leaked := record.get("data", {}).get("leaked", []):
        lines.append(
            f"Data: test images that are also learned from: {len(leaked):,} (run.json names them)"
            + ("; without-duplicates: the accuracy on the others." if _has_others(record) else ".")
        )
    label_entries = [entry for entry in record["stages"] if entry["kind"] == PSEUDO_LABEL]
    if label_entries:
        right = (
            "; right: the share of these labels that are correct" if "pool/right" in label_entries[0]["result"] else ""
        )
        changed = f"; {CHANGED_NOTE}" if wide and _has_changes(record) else ""
        lines.append(f"pseudo: pool images kept with the teacher's label{right}{changed}.")
    lines.append(f"{_describe_validation(record)} {_describe_test(record, wide)}".strip())
    lines += [TASKS_NOTE] if has_tasks(record) else []
    lines += _describe_old_classes(record)
    lines += _describe_uneven_classes(record, wide)
    lines += map(_describe_given_teacher, record.get("given_teachers", []))
    lines += dict.fromkeys(entry["note"] for entry in train_entries(record) if "note" in entry)
    if other_code := describe_other_code(record):
        lines.append(f"Made by other code: {other_code}. attempt=2 makes it anew.")
    return lines


def _describe_validation(record: Mapping[str, Any]) -> str:
    """Return which images validated the run, and which weights were kept."""
    first = train_entries(record)[0]
    images = first["validation_images"]
    text = {
        "none": "No validation: all labels are trained on, the schedule is fixed, the final weights are kept.",
        "inside": f"Validation: {images} of {images + first['labels']} labels, held out",
        "outside": f"Validation: {images} images beside the label budget",
        "own": f"Validation: the dataset's own {images} images",
    }[first["validation"]]
    if not first["steps"]:  # nothing is trained, so nothing is selected
        return f"{text}." if images else "No validation: all labels are used."
    by_metric = "" if read_monitor(record) == MONITORS[0] else f" by {read_monitor(record)}"
    return f"{text}; the weights of the best epoch{by_metric} are kept." if images else text


def _describe_uneven_classes(record: Mapping[str, Any], wide: bool) -> list[str]:
    """Return what balanced accuracy and F1 are; where no columns hold them, with those of the run's network."""
    accuracies = list_metrics(record, wide=False)
    metrics = [metric for metric in list_metrics(record, wide=True) if metric not in accuracies]
    if not metrics:
        return []
    values = [f"{metric.heading} {format_percent(record['result'].get(metric.key))}" for metric in metrics]
    return [UNEVEN_NOTE if wide else f"{main_stage_name(record)}: {', '.join(values)}. {UNEVEN_NOTE}"]


def _describe_old_classes(record: Mapping[str, Any]) -> list[str]:
    """Return what one more class has cost the old ones; nothing where none came, or where that is not known."""
    accuracy, before, taken = (
        record.get("result", {}).get(f"{OLD_CLASSES}/{name}") for name in ("accuracy", "accuracy_before", "taken")
    )
    if accuracy is None or before is None:
        return []
    name = record["data"]["classes"][0]
    untested = [each for entry in record["stages"] for each in entry.get("untested_classes", [])]
    unknown = f" Of {abbreviate(untested)} no image was tested; 'tutelage evaluate RUN data.root=FOLDER' measures all."
    return [
        f"test: images of {name}; old-classes: those that init_from's run was tested on: {format_percent(before)} "
        f"right before {name} came, {format_percent(accuracy)} now, as {format_percent(taken)} are taken for it."
        f"{unknown if untested else ''}"
    ]


def _describe_given_teacher(teacher: Mapping[str, Any]) -> str:
    """Return where a given teacher comes from and, if it could not be measured, why."""
    reason = f"; not measured: {teacher['reason']}" if teacher.get("reason") else ""
    return f"{GIVEN_TEACHER}: {', '.join(teacher['names'])}{reason}."


def _describe_test(record: Mapping[str, Any], wide: bool) -> str:
    """Return the number of test images, and what the brackets of cells hold or, without these, the run's interval."""
    if not is_tested(record):
        return "The test set is untouched; to measure on it, give the same command with evaluate_test=true."
    count, accuracy = _test_images(record), record["result"].get(TEST)
    if count is None:
        return ""
    if accuracy is None or has_tasks(record):
        return f"Test: {count:,} images."
    grouped = ", counted as independent" if record["data"].get("grouped") else ""
    interval = f"Wilson's {CONFIDENCE_LEVEL:.0%} interval over these images{grouped}"
    if wide:
        return f"Test: {count:,} images; in brackets {interval}."
    return f"Test: {count:,} images; {main_stage_name(record)} {_format_with_interval(accuracy, count)}, {interval}."


def print_table(record: Mapping[str, Any]) -> None:
    """Print the table and its notes; the wide table if it fits the terminal."""
    console = _make_console()
    table = _build_table(record, wide=True)
    wide = _measure_width(table) <= console.width
    print_uncut(table if wide else _build_table(record, wide=False))
    for line in build_notes(record, wide):
        console.print(line, style="dim", highlight=False)


def _build_table(record: Mapping[str, Any], wide: bool) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(build_header(record, wide)):
        table.add_column(name, justify="left" if number < 2 else "right", no_wrap=True)  # noqa: PLR2004 - two texts
    for row in build_rows(record, wide):
        table.add_row(*row, style="bold" if row[0] == main_stage_name(record) else None)
    return table


def print_uncut(table: "Table") -> None:
    """Print a table without cutting any cell; on a narrower terminal its lines wrap."""
    _make_console(max(_measure_width(table), _make_console().width)).print(table)


def _make_console(width: int | None = None) -> "Console":
    """Return a console on stdout that prints names as they are: no ``[red]`` and no ``:cat:`` means anything."""
    from rich.console import Console

    return Console(width=width, markup=False, emoji=False)


def _measure_width(table: "Table") -> int:
    """Return how many characters wide a table is if nothing is cut."""
    from rich.measure import Measurement

    console = _make_console()
    return Measurement.get(console, console.options.update(max_width=MAX_WIDTH), table).maximum


def _format_with_interval(accuracy: float | None, images: int | None) -> str:
    """Return an accuracy in percent, with its interval where the number of images is given."""
    if accuracy is None or images is None:
        return format_percent(accuracy)
    return format_accuracy(wilson_interval(accuracy * images, images))


def _format_points(value: float | None) -> str:
    return NO_VALUE if value is None else f"{round(100 * value, 1) + 0.0:.1f}"  # + 0.0 turns -0.0 into 0.0
