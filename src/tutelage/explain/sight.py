"""What each layer sees of the image, and where the network looks: receptive fields and Grad-CAM, drawn on images."""

import numpy as np
import torch

from tutelage.explain.fields import Box, compute_boxes, measure_influence
from tutelage.explain.grad_cam import compute_grad_cam, find_cam_layer
from tutelage.explain.heat import encode_heat
from tutelage.explain.layers import MapLayer, find_map_layers, spread
from tutelage.explain.section import Section, Strip, describe_answer, is_wrong, make_tile
from tutelage.explain.subject import Subject
from tutelage.report.templating import Tile

LAYERS = 8
BUDGET, MAX_IMAGES = 2e9, 64  # multiply-adds of the forward passes of random images; their number
GAMMA = 0.5  # lifts what hardly counts, so that the edge of a field is seen
FORMULA = (
    "A K x K convolution of stride 1 and P x P pooling behind it see (P + K - 1) x (P + K - 1) pixels, and each layer "
    "adds to that. "
)
ATTENTION = "Attention lets every token see the whole image from the first block on. "


def show_fields(subject: Subject) -> list[Section]:
    """Return the section on receptive fields; none for a network without places, whose units see the whole image."""
    layers = spread(find_map_layers(subject.network), LAYERS)
    if not layers:
        return []
    size, network = subject.network.spec.image_size, subject.network
    computed = compute_boxes(network, layers)
    images = int(np.clip(BUDGET // subject.multiply_adds, 1, MAX_IMAGES))
    measured = measure_influence(network, layers, images)
    background = max(subject.pictures, key=lambda picture: float(np.std(picture.pixels))).pixels
    tiles = []
    for layer in layers:
        box, influence = computed[layer.name], measured[layer.name]
        heat = (influence / (influence.max() or 1.0)) ** GAMMA
        tiles.append(Tile(encode_heat(background, heat, box.clip(size)), _describe(layer, box, influence, size)))
    whole, attending = Box(0, size - 1, 0, size - 1), [layer.name for layer in layers if layer.has_attention]
    sees_all = bool(attending) and all(computed[name].clip(size) == whole for name in attending)
    reading = (
        f"{ATTENTION if sees_all else FORMULA}The frame is what the central unit "
        "of a layer sees, computed from the operations; the glow is how much each pixel moves it, measured by "
        f"gradients over {images} random image{'s' if images > 1 else ''}: it must stay within the frame, and is "
        "brightest where the unit really looks."
    )
    return [Section("What each layer sees", reading, [Strip("", tiles, are_large=True)])]


def _describe(layer: MapLayer, box: Box, influence: np.ndarray, size: int) -> list[str]:
    found = Box.around(influence > 0)
    seen = f"{found.side} x {found.side}" if found else "nothing"
    is_cut = box.clip(size) != box
    computed = f"sees {box.side} x {box.side}{', beyond the edge' if is_cut else ''}"
    return [layer.title, layer.kind, computed, f"measured {seen}{' inside' if is_cut else ''}"]


def show_grad_cam(subject: Subject) -> list[Section]:
    """Return the section on Grad-CAM; none for a network without places or without gradients."""
    layer = find_cam_layer(subject.network)
    if layer is None:
        return []
    pairs = [(position, int(subject.predicted[position])) for position in range(len(subject.pictures))]
    pairs += [
        (position, picture.label)
        for position, picture in enumerate(subject.pictures)
        if picture.label is not None and is_wrong(subject, position)
    ]
    columns = torch.tensor([subject.columns[label] for _, label in pairs])
    heat = compute_grad_cam(subject.network, layer, subject.images[[position for position, _ in pairs]], columns)
    strips = []
    for position, picture in enumerate(subject.pictures):
        tiles = [make_tile(picture, describe_answer(subject, position), is_wrong(subject, position))]
        for (shown, label), each in zip(pairs, heat, strict=True):
            if shown == position:
                probability = f"{subject.probabilities[position, label]:.1%}"
                tiles.append(Tile(encode_heat(picture.pixels, each), [f"for {subject.classes[label]}", probability]))
        strips.append(Strip("", tiles, are_large=True))
    reading = (
        "Bright places speak for the class that is named (Grad-CAM: the maps of "
        f"{layer.title}, {layer.side} x {layer.side}, weighed by the class's gradients). A network that looks at the "
        "background or at a corner has learned something else than the thing; a dark picture means that no place "
        "speaks for that class."
    )
    return [Section("Where it looks", reading, strips)]
