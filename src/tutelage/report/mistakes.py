"""The mistakes of a network as tiles: what it answers, what they show, and what they look like to it."""

from collections.abc import Sequence

from tutelage.data import Predictions, Source
from tutelage.report.answers import find_mistakes
from tutelage.report.neighbours import Neighbours
from tutelage.report.templating import Tile, encode_image, is_small

MISTAKES = 24  # that are shown
NEIGHBOUR_SIDE = 96  # pixels


def make_mistakes(
    predictions: Predictions, classes: Sequence[str], source: Source, neighbours: Neighbours | None = None
) -> list[Tile]:
    """Return the most confident mistakes, the worst first.

    Args:
        predictions: with known labels, on images of ``source``.
        classes: the names of the network's classes.
        source: the data.
        neighbours: of the mistakes, in the order of ``find_mistakes``.
    """
    tiles = []
    for number, position in enumerate(find_mistakes(predictions, MISTAKES).tolist()):
        probabilities, index = predictions.probabilities[position], int(predictions.indices[position])
        predicted, truth = classes[int(probabilities.argmax())], classes[predictions.labels[position]]
        image, confidence = source.images[index], float(probabilities.max())
        lines = [f"{predicted}, {confidence:.0%}", f"shows {truth}"]
        keys: dict[str, str | float] = {"confidence": confidence, "shows": truth, "taken for": predicted}
        if source.has_file_names:
            lines.append(source.names[index])
            keys["file"] = source.names[index]
        others = () if neighbours is None else _make_neighbours(neighbours.indices[number].tolist(), source)
        tiles.append(
            Tile(
                encode_image(image), lines, is_small(image), True, keys, others, "most alike among the training images"
            )
        )
    return tiles


def _make_neighbours(indices: Sequence[int], source: Source) -> list[Tile]:
    tiles = []
    for index in indices:
        image = source.images[index]
        tiles.append(Tile(encode_image(image, NEIGHBOUR_SIDE), [source.classes[source.labels[index]]], is_small(image)))
    return tiles
