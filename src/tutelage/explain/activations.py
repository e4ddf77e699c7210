"""What the layers make of a picture: the channels that respond most, as maps."""

import numpy as np
import torch
from torch import Tensor

from tutelage.explain.heat import encode_map
from tutelage.explain.layers import MapLayer, find_map_layers, recorded_outputs, spread
from tutelage.explain.section import Group, Section, Strip, describe_answer, is_wrong, make_tile
from tutelage.explain.subject import Subject
from tutelage.report.templating import Tile

LAYERS, CHANNELS = 6, 8
TIMES = "\N{NO-BREAK SPACE}x\N{NO-BREAK SPACE}"
LAYER_READING = (
    "Each row is a layer, from the image to the last one, and each small picture one of its channels: white is where "
    "the channel responds most, and the strongest channels stand first. Early maps still look like the picture; later "
    "ones are coarser and say where a part or a pattern is."
)
BLOCK_READING = (
    "Each row is a block, from the image to the last one, and each small picture one number of the tokens, laid out as "
    "their patches are: white is where it is largest, and those that differ most between patches stand first. Early "
    "maps still follow the picture; later ones mark the patches that the blocks have set apart."
)


def show_activations(subject: Subject) -> list[Section]:
    """Return the section on activation maps; none for a network without places."""
    layers = spread(find_map_layers(subject.network), LAYERS)
    if not layers:
        return []
    with torch.inference_mode(), recorded_outputs(subject.network, [layer.name for layer in layers]) as outputs:
        subject.network.features(subject.images.to(subject.classifier.device))
    maps = [layer.to_maps(outputs[layer.name]).float().cpu() for layer in layers]
    groups = []
    for position, picture in enumerate(subject.pictures):
        tile = make_tile(picture, describe_answer(subject, position), is_wrong(subject, position))
        strips = [
            Strip(layer.title, make_map_tiles(each[position]), _describe(layer))
            for layer, each in zip(layers, maps, strict=True)
        ]
        groups.append(Group(tile, strips))
    has_tokens = layers[-1].layout == "tokens"
    heading = "Token maps, block by block" if has_tokens else "Activation maps, layer by layer"
    return [Section(heading, BLOCK_READING if has_tokens else LAYER_READING, groups=groups)]


def _describe(layer: MapLayer) -> str:
    return f"{layer.kind}: {layer.channels} maps, {layer.side}{TIMES}{layer.side}"


def make_map_tiles(maps: Tensor) -> list[Tile]:
    """Return the strongest channels of maps (C, H, W), each on its own range; a rectified one begins at zero."""
    values = maps.numpy()
    chosen = choose_channels(values)
    lows = np.where(values.min() < 0, values[chosen].min(axis=(1, 2)), 0.0)
    return [
        Tile(encode_map(values[channel] - low, float(values[channel].max() - low)), [], is_small=True)
        for channel, low in zip(chosen, lows, strict=True)
    ]


def choose_channels(values: np.ndarray) -> np.ndarray:
    """Return the channels of maps (C, H, W) that respond most: by their largest value, or by their spread.

    The largest value says most where a layer is rectified. Elsewhere a channel may be large at all places alike.
    """
    strength = values.max(axis=(1, 2)) if values.min() >= 0 else values.std(axis=(1, 2))
    return np.argsort(-strength, kind="stable")[:CHANNELS]
