"""The page that explains a network, section by section."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache, partial
from pathlib import Path

import torch

from tutelage import __version__
from tutelage.errors import UserError, quote_error
from tutelage.explain.activations import show_activations
from tutelage.explain.features import compute_features
from tutelage.explain.filters import show_weights
from tutelage.explain.forgetting import show_forgetting
from tutelage.explain.landscape import show_map, show_neighbours
from tutelage.explain.section import Section, make_picture_tiles
from tutelage.explain.sight import show_fields, show_grad_cam
from tutelage.explain.soft_labels import show_soft_labels
from tutelage.explain.subject import Subject
from tutelage.explain.summary import HEADER, TEXT_COLUMNS, format_cells, summarize_layers
from tutelage.explain.teacher import show_teacher
from tutelage.models import NearestNeighbours, make_classifier
from tutelage.report.templating import Column, Number, Table, write_page
from tutelage.runs.observer import Observer, Part, Work
from tutelage.terminal.intervals import format_percent

TEMPLATE = "explain.html.j2"
LAYER_READING = (
    "Each row is a call of a layer, for one picture: its output, the side of the square of pixels that a unit sees, "
    "the pixels from one unit to the next, multiply-adds and weights. Most multiply-adds are usually in the middle, "
    "most weights at the end."
)
Show = Callable[[], Sequence[Section]]


def list_parts(subject: Subject) -> dict[str, tuple[Show, float]]:
    """Return what makes each part of the page, in the page's order, and the seconds that it may take, by name."""
    parts: dict[str, tuple[Show, float]] = {
        "weights": (partial(show_weights, subject), 1),
        "activations": (partial(show_activations, subject), 2),
        "receptive fields": (partial(show_fields, subject), 3),
        "Grad-CAM": (partial(show_grad_cam, subject), 2),
        "soft labels": (partial(show_soft_labels, subject), 3),
        "teacher": (partial(show_teacher, subject), 3),
    }
    if (data := subject.data) is not None:
        features = cache(lambda: compute_features(subject, data))  # where they are first needed
        parts["neighbours"] = (lambda: show_neighbours(subject, data, features()), 4)
        parts["map"] = (lambda: show_map(subject, data, features()), 6)
    parts["tasks"] = (partial(show_forgetting, subject), 1)
    parts["layers"] = (partial(show_layers, subject), 1)
    return parts


def show_layers(subject: Subject) -> list[Section]:
    """Return the section with the table of the layers."""
    with torch.device("meta"):
        network = make_classifier(subject.network.model_config, subject.network.spec)
    columns = [Column(name, is_text=number < TEXT_COLUMNS) for number, name in enumerate(HEADER)]
    rows = [format_cells(layer) for layer in summarize_layers(network)]
    return [Section("The layers", LAYER_READING, table=Table("layers", columns, rows), is_folded=True)]


def write_explanation(subject: Subject, command: str, observer: Observer) -> Path:
    """Write the page and return its file; ``command`` makes it again.

    Raises:
        UserError: it cannot be written.
    """
    parts = list_parts(subject)
    observer.begin([Part(name, [Work((name,), seconds)]) for name, (_, seconds) in parts.items()])
    sections: list[Section] = []
    for number, (show, _) in enumerate(parts.values(), 1):
        observer.part(number)
        sections += show()
        observer.progress(1.0, {})
    file = subject.folder.report / subject.name / "index.html"
    try:
        write_page(
            file,
            TEMPLATE,
            run=subject.folder.path.name,
            heading=_name_network(subject),
            numbers=_list_numbers(subject),
            notes=list(subject.notes) + _list_limits(subject),
            pictures=make_picture_tiles(subject),
            sections=sections,
            facts=_list_facts(subject, command),
        )
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({quote_error(error)}); see to the run's folder") from None
    return file


def _name_network(subject: Subject) -> str:
    kind = type(subject.network).__name__
    name = subject.network.model_config.get("name")
    return f"{name or kind}, {subject.stage}" if len(subject.record["stages"]) > 1 else str(name or kind)


def _list_numbers(subject: Subject) -> list[Number]:
    result: Mapping[str, float] = subject.entry["result"]
    spec, numbers = subject.network.spec, list[Number]()
    if (accuracy := result.get("test/accuracy")) is not None:
        numbers.append(Number("test accuracy", format_percent(accuracy), f"stage {subject.stage}"))
    colours = "grey" if spec.channels == 1 else "in colour"
    return [
        *numbers,
        Number("weights", _shorten(subject.entry["parameters"])),
        Number("multiply-adds", _shorten(subject.multiply_adds), "for one picture"),
        Number("sees", f"{spec.image_size} x {spec.image_size}", colours),
        Number("classes", f"{len(subject.classes):,}"),
    ]


def _shorten(number: float) -> str:
    """Return a number to three digits, with k, M or G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def _list_limits(subject: Subject) -> list[str]:
    """Return what a network of this kind has no pictures of."""
    if isinstance(subject.network, NearestNeighbours):
        return [
            "Nearest neighbours have no gradients: there is no Grad-CAM. Their soft labels are the shares of the "
            "neighbours' votes, and the nearest training pictures below are the reasons for each answer, as far as all "
            "of them are compared."
        ]
    return []


def _list_facts(subject: Subject, command: str) -> dict[str, str]:
    return {
        "run": str(subject.folder.path),
        "command": command,
        "made": f"{datetime.now().astimezone():%Y-%m-%d %H:%M} by tutelage {__version__}",
    }
