"""The landscape of features: training, pool, test and augmented pictures as points, and each picture's neighbours."""

import warnings
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tutelage.data import UNKNOWN, ImageDataModule
from tutelage.explain.features import Features, Points, find_neighbours, nearest_distances
from tutelage.explain.section import Section, Strip, describe_answer, is_wrong, make_tile
from tutelage.explain.subject import Subject
from tutelage.models import NearestNeighbours
from tutelage.report.pictures import COLORS, REFERENCE_COLOR, TEXT_COLOR, shorten_name, shorten_path
from tutelage.report.templating import Drawing, Tile, encode_image, is_small
from tutelage.report.vector import encode_figure

NEIGHBOURS = 5
SEED = 0
PERPLEXITY, POINTS_PER_PERPLEXITY = 30, 4  # t-SNE's usual one; it needs several times as many points
PCA_BEFORE_TSNE = 50  # dimensions (van der Maaten and Hinton 2008)
TSNE_STEPS = 500  # half of the usual ones: from PCA's plane so few points have settled by then
MIN_POINTS = 8  # for a map
HARDLY = 0.02  # a share by which a distance hardly changes
SIDE = 5.4  # inches
MAX_COLORED = 10  # classes with a colour
CLASS_COLORS = (*COLORS, "#8c6d31", "#7b5ea7", "#b2b200", "#a05195")
MARKERS = {"training": "o", "augmented": "+", "pool": ".", "test": "^"}  # kinds of points, the first at the bottom
SIZES = {"training": 34, "augmented": 22, "pool": 16, "test": 24}
PCA_READING = (
    "The two directions in which the features differ most; distances are true as far as two directions can show them. "
    "Test points far from any training point are what the network has to guess, and augmented points between them are "
    "the gap that augmentation fills."
)
TSNE_READING = (
    "The same points laid out so that neighbours stay neighbours; distances between groups mean nothing here. Separate "
    "groups of one colour are classes that the network tells apart, and a test point in a group of another colour is "
    "a mistake in the making."
)


def show_map(subject: Subject, data: ImageDataModule, features: Features) -> list[Section]:
    """Return the section with the maps of the features; none for too few points."""
    kinds = {"training": features.train, "augmented": features.views, "pool": features.pool, "test": features.test}
    kinds = {name: points for name, points in kinds.items() if len(points)}
    everything = np.concatenate([points.features for points in kinds.values()]) if kinds else np.empty((0, 0))
    if len(everything) < MIN_POINTS:
        return []
    layouts = project(everything)
    counts = ", ".join(f"{len(points)} {name}" for name, points in kinds.items())
    drawings = []
    for (title, places), reading in zip(layouts.items(), (PCA_READING, TSNE_READING), strict=True):
        figure = draw_map(places, kinds, data.classes)
        alt = f"{title} of the features of {counts} pictures."
        drawings.append(Drawing(title, reading, encode_figure(figure), alt))
    what = "as they are compared" if isinstance(subject.network, NearestNeighbours) else "each of unit length"
    reading = (
        f"The points are the features of {counts} pictures, what the network's last layer gets, {what}. "
        "Features that lie near each other are pictures that the network can hardly tell apart."
    )
    return [Section("A map of the pictures", reading, drawings=drawings, finding=describe_gap(features))]


def project(features: np.ndarray) -> dict[str, np.ndarray]:
    """Return features (N, D) in two dimensions (N, 2), by PCA and by t-SNE."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    components = min(PCA_BEFORE_TSNE, *features.shape)
    reduced = PCA(components, random_state=SEED, svd_solver="full").fit_transform(features.astype(np.float64))
    plane = np.pad(reduced, ((0, 0), (0, 2)))[:, :2]
    perplexity = min(PERPLEXITY, (len(features) - 1) / POINTS_PER_PERPLEXITY)
    start = plane / (plane.std(axis=0).max() or 1.0) * 1e-4  # as scikit-learn's init="pca" scales it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        embedded = TSNE(perplexity=perplexity, init=start, max_iter=TSNE_STEPS, random_state=SEED).fit_transform(
            reduced
        )
    return {"PCA": plane, "t-SNE": embedded}


def describe_gap(features: Features) -> str:
    """Return how far test images lie from the training images, and whether augmented views bring them nearer."""
    train, views, test, pool = features.train, features.views, features.test, features.pool
    if not len(test) or not len(train):
        return ""
    before = float(nearest_distances(test.features, train.features).mean())
    text = (
        f"A test picture lies {before:#.3g} from the nearest of {len(train)} training pictures, as a mean over "
        f"{len(test)} test pictures"
    )
    if not len(views):
        return f"{text}."
    after = _distance_with(test, train, views)
    change = (after - before) / (before or 1.0)
    verdict = "augmentation hardly narrows the gap" if change > -HARDLY else "augmentation narrows the gap"
    text = f"{text}, and {after:#.3g} ({change:+.0%}) with {len(views)} augmented views of them: {verdict}."
    if len(pool) < len(views):
        return text
    with_pool = _distance_with(test, train, pool.first(len(views)))
    return f"{text} As many pictures of the pool in their place would make it {with_pool:#.3g}."


def _distance_with(test: Points, train: Points, others: Points) -> float:
    bank = np.concatenate([train.features, others.features])
    return float(nearest_distances(test.features, bank).mean())


def draw_map(places: np.ndarray, kinds: Mapping[str, Points], classes: tuple[str, ...]) -> Figure:
    """Draw points (N, 2), those of one kind after another: a marker for each kind, a colour for each of a few classes.

    With more classes the colours are those of the kinds. Points without a label are grey.
    """
    figure, axes = plt.subplots(figsize=(SIDE, SIDE), layout="constrained")
    by_class = len(classes) <= MAX_COLORED
    start, handles = 0, []
    for number, (name, points) in enumerate(kinds.items()):
        part, start = places[start : start + len(points)], start + len(points)
        own = REFERENCE_COLOR if by_class else COLORS[number]
        colors = [CLASS_COLORS[label] if by_class and label != UNKNOWN else own for label in points.labels.tolist()]
        edge = {"edgecolors": "white", "linewidths": 0.5} if name in {"training", "test"} else {"linewidths": 0.8}
        alpha = 1.0 if name in {"training", "test"} else 0.65
        axes.scatter(part[:, 0], part[:, 1], s=SIZES[name], c=colors, marker=MARKERS[name], alpha=alpha, **edge)
        handles.append(_make_handle(name, MARKERS[name], own if not by_class or name == "pool" else TEXT_COLOR))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    columns = {"fontsize": 8, "frameon": False, "labelcolor": TEXT_COLOR, "handletextpad": 0.1, "columnspacing": 0.9}
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), **columns)
    if by_class:
        names = [_make_handle(shorten_name(each), "s", CLASS_COLORS[number]) for number, each in enumerate(classes)]
        figure.legend(handles=names, loc="outside lower left", ncols=min(5, len(names)), **columns)
    return figure


def _make_handle(label: str, marker: str, color: str) -> Line2D:
    return Line2D([], [], linestyle="", marker=marker, color=color, label=label, markersize=6)


def show_neighbours(subject: Subject, data: ImageDataModule, features: Features) -> list[Section]:
    """Return the section with each picture's nearest training pictures; none where there are no training pictures."""
    bank = features.candidates
    if not len(bank):
        return []
    rows, distances = find_neighbours(features.pictures, bank.features, NEIGHBOURS)
    by_distance = isinstance(subject.network, NearestNeighbours)
    strips = []
    for position, picture in enumerate(subject.pictures):
        tiles = [make_tile(picture, describe_answer(subject, position), is_wrong(subject, position))]
        for row, distance in zip(rows[position], distances[position].tolist(), strict=True):
            index, label = int(bank.indices[row]), int(bank.labels[row])
            pixels = np.asarray(data.images[index])
            file = [shorten_path(data.source.names[index])] if data.source.has_file_names else []
            name = "?" if label == UNKNOWN else data.classes[label]
            alike = f"distance {distance:.3g}" if by_distance else f"cosine {1 - distance**2 / 2:.3f}"
            tiles.append(Tile(encode_image(pixels), [name, alike, *file], is_small(pixels)))
        strips.append(Strip("", tiles, are_large=True))
    among = f"{len(bank):,} training pictures"
    if features.candidate_total > len(bank):
        among = f"{among} drawn from {features.candidate_total:,}"
    measure = (
        "are nearest, by the distance that the network itself goes by"
        if by_distance
        else "point most nearly in the same direction: a cosine of 1 is the same direction"
    )
    reading = (
        f"Behind each picture the {NEIGHBOURS} of {among} whose features {measure}. They are what the network takes "
        "the picture for; neighbours of another class, or a duplicate with a wrong label, often explain a mistake."
    )
    return [Section("Nearest training pictures", reading, strips)]
