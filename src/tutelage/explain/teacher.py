"""Teacher and student on the same picture: their probabilities, and where both look, side by side."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

from tutelage.errors import UserError
from tutelage.explain.grad_cam import compute_grad_cam, find_cam_layer
from tutelage.explain.heat import encode_heat
from tutelage.explain.section import Group, Section, Strip, make_picture_tiles
from tutelage.explain.subject import Subject
from tutelage.models import Teacher, load_classifier, weight_hash
from tutelage.models.teacher import adapt_images
from tutelage.report.pictures import COLORS, REFERENCE_COLOR, TEXT_COLOR, remove_frame, shorten_name
from tutelage.report.templating import Tile
from tutelage.report.vector import encode_figure
from tutelage.runs import PSEUDO_LABEL, weights_files
from tutelage.runs.teachers import TEACHERS_KEY
from tutelage.runs.weight_sources import find_network

TOP = 5  # classes of each network that are shown
WIDTH, BAR_HEIGHT, HEAD_HEIGHT = 4.6, 0.34, 0.5  # inches
NO_VALUE = 0.0  # of a class that a network does not have


def show_teacher(subject: Subject) -> list[Section]:
    """Return the section on teacher and student; none for a network without a teacher."""
    found = find_teacher(subject)
    if found is None:
        return []
    name, teacher = found
    answers = _answer(subject, teacher)
    groups = []
    heats = [_look(subject, network, answers) for network in (teacher.networks[0], subject.network)]
    for position, tile in enumerate(make_picture_tiles(subject)):
        student = dict(zip(subject.classes, subject.probabilities[position].tolist(), strict=True))
        figure = draw_pair({name: answers[position], subject.stage: student})
        tiles = [
            Tile(encode_heat(subject.pictures[position].pixels, heat[position]), [who])
            for who, heat in zip((name, subject.stage), heats, strict=True)
            if heat is not None
        ]
        strips = [Strip("", tiles, are_large=True)] if tiles else []
        alt = f"Probabilities of {name} and {subject.stage}."
        groups.append(Group(tile, strips, encode_figure(figure), alt))
    agreement = np.mean(
        [
            max(of_teacher, key=lambda each: of_teacher[each]) == subject.classes[predicted]
            for of_teacher, predicted in zip(answers, subject.predicted, strict=True)
        ]
    )
    reading = (
        f"What the teacher ({name}) and its student ({subject.stage}) say of the same picture, and what in it speaks "
        "for the teacher's class. Where the bars differ, the student has learned something else than its teacher: from "
        "labels, from noise or from more pictures."
    )
    finding = f"They name the same class for {agreement:.0%} of these pictures."
    return [Section("Teacher and student", reading, groups=groups, finding=finding)]


def find_teacher(subject: Subject) -> tuple[str, Teacher] | None:
    """Return the name of the teacher that a stage learned from, and its networks; None where there is none any more.

    The teacher is the one of the stage or of the stage that it starts from; of a stage that learned from pseudo-labels
    it is the network that gave them.
    """
    record, entry = subject.record, subject.entry
    stages = {each["name"]: each for each in record["stages"]}
    while not entry.get("teacher_sha256") and entry.get("starts_from") in stages:
        entry = stages[entry["starts_from"]]
    files = weights_files(subject.folder, record)
    if hashes := entry.get("teacher_sha256"):
        own = next((each for each in stages.values() if [each.get("weights_sha256")] == hashes), None)
        if own is not None:
            return own["name"], Teacher([load_classifier(files[own["name"]])])
        return _load_given(record, hashes)
    before = record["stages"][: record["stages"].index(entry)]
    labellings = [each["teacher"] for each in before if each["kind"] == PSEUDO_LABEL]
    if entry["control"] or not labellings:
        return None
    return labellings[-1], Teacher([load_classifier(files[labellings[-1]])])


def _load_given(record: Mapping[str, Any], hashes: list[str]) -> tuple[str, Teacher] | None:
    """Return the teacher that a run was given; None where its weights are gone or have changed."""
    for given in record.get("given_teachers", ()):
        try:
            networks = [load_classifier(find_network(name, TEACHERS_KEY)) for name in given["names"]]
        except UserError:
            continue
        if [weight_hash(network) for network in networks] == hashes:
            return "the given teacher", Teacher(networks)
    return None


def _answer(subject: Subject, teacher: Teacher) -> list[dict[str, float]]:
    """Return the teacher's probabilities of each picture, by class."""
    device, classes = subject.classifier.device, teacher.classes
    logits = teacher.to(device)(subject.images.to(device)).cpu()
    if classes == subject.network.spec.classes:
        logits, classes = logits[:, subject.columns], subject.classes
    return [dict(zip(classes, row, strict=True)) for row in logits.softmax(dim=1).tolist()]


def _look(subject: Subject, network: Any, answers: list[dict[str, float]]) -> np.ndarray | None:
    """Return where a network looks for the class that the teacher names; None where Grad-CAM does not apply."""
    layer, names = find_cam_layer(network), network.spec.classes
    classes = [max(each, key=lambda name: each[name]) for each in answers]
    if layer is None or not set(classes) <= set(names):
        return None
    columns = torch.tensor([names.index(name) for name in classes])
    return compute_grad_cam(network, layer, adapt_images(subject.images, network.spec), columns)


def draw_pair(answers: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw the probabilities of two networks, by their names: a pair of bars for each class that one finds likely."""
    first, second = answers.values()
    classes = sorted({*_top(first), *_top(second)}, key=lambda name: -first.get(name, 0) - second.get(name, 0))[:TOP]
    rows = np.arange(len(classes))
    figure, axes = plt.subplots(figsize=(WIDTH, BAR_HEIGHT * len(classes) + HEAD_HEIGHT), layout="constrained")
    for number, ((name, of_one), color) in enumerate(zip(answers.items(), (REFERENCE_COLOR, COLORS[0]), strict=True)):
        shares = [of_one.get(each, NO_VALUE) for each in classes]
        places = rows + (number - 0.5) * 0.36
        axes.barh(places, shares, color=color, height=0.32, label=name)
        for place, share in zip(places, shares, strict=True):
            axes.text(share + 0.01, place, f"{share:.1%}", va="center", fontsize=7, color=TEXT_COLOR)
    axes.set(xlim=(0, 1.12), xticks=[], yticks=rows)
    axes.set_yticklabels([shorten_name(each) for each in classes], fontsize=8)
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)
    remove_frame(axes, "x")
    return figure


def _top(answer: Mapping[str, float]) -> list[str]:
    return sorted(answer, key=lambda name: -answer[name])[:TOP]
