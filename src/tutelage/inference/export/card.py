"""The model card beside an exported network: ``README.md``, with front matter for the Hub and no machine's paths."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tutelage import __version__
from tutelage.data import OLD_CLASSES, WITHOUT_DUPLICATES, Predictions
from tutelage.inference.export.formats import Format
from tutelage.inference.export.origin import find_origin
from tutelage.inference.export.reading import describe_reading, reading_lines
from tutelage.inference.loading import LoadedNetwork
from tutelage.models import compute_confusion_matrix, compute_metrics
from tutelage.report.answers import score_classes
from tutelage.runs import RunFolder, main_stage_name, open_finished_run, stage_folders
from tutelage.runs.predictions import read_predictions
from tutelage.storage import file_digest
from tutelage.terminal.intervals import CONFIDENCE_LEVEL, format_accuracy, wilson_interval

CARD = "README.md"
FEW_CLASSES = 30  # of which each has a line


def write_card(folder: Path, chosen: Format, run: str, member: LoadedNetwork, stage: str | None, checked: str) -> None:
    """Write the card of a network into the folder of its exported files.

    Args:
        folder: of the files, which are whole.
        chosen: their format.
        run: the folder of the network's run.
        member: the network.
        stage: its stage; None for the run's last one.
        checked: what the check of the files has shown.
    """
    run_folder, record = open_finished_run(run)
    name = stage or main_stage_name(record)
    entry = next(entry for entry in record["stages"] if entry["name"] == name)
    tested = _read_test(stage_folders(run_folder, record)[name], member)
    files = {file.name: file_digest(file, "file") for file in sorted(folder.iterdir())}
    lines = [
        *_front_matter(chosen, member),
        f"# {run_folder.path.resolve().name}",
        "",
        f"A classifier of {len(member.classes)} classes, trained by Tutelage {record['version']} and exported by "
        f"{__version__} ({chosen.name}).",
        "",
        *_describe_classes(member),
        *_describe_training(member, record, entry),
        *_describe_test(tested, member.classes, entry["result"], member.network.spec.added > 0),
        *_describe_use(chosen, member),
        "## Files",
        "",
        *(f"- `{file}`, SHA-256 `{digest}`" for file, digest in files.items()),
        "",
        f"Checked on {checked}, and it predicts the same classes.",
        "",
    ]
    (folder / CARD).write_text("\n".join(lines), encoding="utf-8")


def _front_matter(chosen: Format, member: LoadedNetwork) -> Iterator[str]:
    """Yield the lines that the Hub reads."""
    import yaml

    license_name = find_origin(member).license
    values = {
        **({} if license_name is None else {"license": license_name}),
        "library_name": chosen.library,
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "tutelage", type(member.network).__name__.lower()],
    }
    yield from ("---", yaml.safe_dump(values, sort_keys=False).rstrip(), "---", "")


def _describe_classes(member: LoadedNetwork) -> Iterator[str]:
    yield from ("Classes, in the order of the logits:", "", "```json")
    yield from (json.dumps(member.classes, ensure_ascii=False), "```", "")


def _describe_training(member: LoadedNetwork, record: Mapping[str, Any], entry: Mapping[str, Any]) -> Iterator[str]:
    data, strategy = record["identity"]["data"], record["identity"]["strategy"]["_target_"]
    root = "" if member.data.root is None else f" {Path(member.data.root).name}"
    fingerprint = f", fingerprint `{data['fingerprint']}`" if data.get("fingerprint") else ""
    architecture = entry["model"].get("name", type(member.network).__name__)
    origin = find_origin(member)
    yield from ("## Training", "")
    yield f"- data: {data['_target_'].rpartition('.')[2]}{root}{fingerprint}"
    yield f"- labels: {entry['labels']:,}"
    yield f"- architecture: {architecture}, {entry['parameters']:,} parameters"
    yield f"- strategy: {strategy.rpartition('.')[2].removesuffix('Strategy')}, stage {entry['name']}"
    if member.config is not None and member.config.strategy.given_teachers:
        yield f"- teachers: {', '.join(Path(name).name for name in member.config.strategy.given_teachers)}"
    yield f"- began from: {origin.text}"
    if origin.has_weights:
        yield f"- licence of what it began from: {origin.license or 'not known'}"
    yield ""


def _read_test(folder: RunFolder, member: LoadedNetwork) -> Predictions | None:
    """Return the predictions on the test set, of one task alone where the network has several; None without any."""
    if not folder.test_file.is_file():
        return None
    predictions = read_predictions(folder.test_file)
    if member.columns is not None:
        columns = np.array(member.columns)
        predictions = predictions.select(np.isin(predictions.labels, columns))
        labels = np.argmax(predictions.labels[:, None] == columns, axis=1)
        predictions = replace(predictions, probabilities=predictions.probabilities[:, columns], labels=labels)
    return predictions if len(predictions.labels) else None


def _describe_test(
    tested: Predictions | None, classes: tuple[str, ...], result: Mapping[str, float], is_added: bool
) -> Iterator[str]:
    """Yield how good the network is; where its first class was added to others, on pictures of that and of these."""
    without_duplicates = result.get(f"test{WITHOUT_DUPLICATES}/accuracy")
    yield from ("## Test", "")
    if tested is None:
        yield from ("The network was not tested.", "")
        return
    metrics = compute_metrics(tested, classes, "test")
    confusion, count = compute_confusion_matrix(tested), len(tested.labels)
    accuracy = wilson_interval(int(np.trace(confusion)), count)
    yield f"- accuracy: {format_accuracy(accuracy)} on {count:,} test pictures; in brackets"
    yield f"  Wilson's {CONFIDENCE_LEVEL:.0%} interval"
    if is_added:
        yield f"- these are all of class {classes[0]}, which came to the others by pictures of it alone"
    if (old := result.get(f"{OLD_CLASSES}/accuracy")) is not None:
        yield f"- accuracy on the test pictures of the others: {100 * old:.1f} %"
    if without_duplicates is not None:
        yield f"- accuracy without the test pictures that it has also learned from: {100 * without_duplicates:.1f} %"
    yield f"- expected calibration error (15 bins): {100 * metrics['test/calibration_error']:.1f} %"
    yield ""
    if len(classes) <= FEW_CLASSES:
        yield from ("| class | pictures | accuracy |", "|---|---|---|")
        for score in score_classes(confusion, classes):
            if score.images:
                cell = format_accuracy(wilson_interval(score.correct, score.images))
                yield f"| {score.name.replace('|', chr(92) + '|')} | {score.images:,} | {cell} |"
        yield ""


def _describe_use(chosen: Format, member: LoadedNetwork) -> Iterator[str]:
    spec = member.network.spec
    usage = chosen.usage.replace("MEAN", str(list(spec.mean))).replace("STD", str(list(spec.std)))
    yield from ("## Use", "", describe_reading(member.data), "")
    yield "These lines do it to the pixel (`pip install pillow numpy opencv-python-headless`):"
    yield from ("", "```python", reading_lines(member.data).rstrip(), "```", "")
    yield '`picture = read("picture.jpg")`; then, in the folder of these files:'
    yield from ("", "```python", usage, "```", "")
