"""The network of one finished run, or of a file of one, and how it sees pictures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.config import Config, DataConfig
from tutelage.data import abbreviate
from tutelage.errors import UserError
from tutelage.models import Heads, ImageClassifier, load_classifier
from tutelage.runs import RunFolder, main_stage_name, open_finished_run, read_config, weights_files
from tutelage.runs.weight_sources import TAGS, find_network, find_run_around

FITS = {"crop": "its middle", "pad": "the whole of it on a square", "stretch": "the whole of it, stretched"}
# What matters for reading pictures is in the network's spec; the rest of a DataConfig has no meaning without a dataset.
FILE_DATA = {"_target_": "tutelage.data.ImageFolder", "batch_size": 1, "num_workers": "auto"}


@dataclass(frozen=True)
class LoadedNetwork:
    """A network that a run has trained, and how it sees pictures.

    Attributes:
        source: the run or the file that was named.
        network: in eval mode.
        columns: the columns of its logits that are used, those of one task; None for all.
        data: how pictures are read and brought to size.
        config: of its run; None for a file outside of one.
    """

    source: str
    network: ImageClassifier
    columns: tuple[int, ...] | None
    data: DataConfig
    config: Config | None

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the columns."""
        names = self.network.spec.classes
        return names if self.columns is None else tuple(names[column] for column in self.columns)

    @property
    def form(self) -> tuple[Any, ...]:
        """What must be the same in networks that see the same batch of pictures."""
        data = self.data
        return data.image_size, data.channels, data.fit, tuple(data.background), data.white

    def describe_form(self) -> str:
        """Return in words what pictures are brought to."""
        data, colours = self.data, "grey" if self.data.channels == 1 else "RGB"
        return f"{data.image_size} x {data.image_size} pixels, {colours}, {FITS[data.fit]} (fit={data.fit})"


def load_network(source: str, stage: str | None = None, task: int | None = None) -> LoadedNetwork:
    """Return the network of one run or file.

    Args:
        source: a run's folder, or a checkpoint such as ``best.ckpt``.
        stage: the name of the stage whose network is meant; None for the last one. Not for a file.
        task: of a network with several heads the one that is meant, from 1; None where there is one.

    Raises:
        UserError: there is no such network.
    """
    file, config = _find_file(source, stage)
    network = load_classifier(file).eval()
    spec = network.spec
    seen = {"image_size": spec.image_size, "channels": spec.channels, "mean": list(spec.mean), "std": list(spec.std)}
    data = DataConfig.model_validate(FILE_DATA | seen) if config is None else config.data.model_copy(update=seen)
    return LoadedNetwork(source, network, _choose_task(source, network, task), data, config)


def find_tasks(source: str, stage: str | None = None) -> list[list[int]]:
    """Return the columns of each task that a network has learned (see ``load_network``); none for one with one head.

    Raises:
        UserError: there is no such network.
    """
    return _list_learned(load_classifier(_find_file(source, stage)[0]))


def _find_file(source: str, stage: str | None) -> tuple[Path, Config | None]:
    """Return the weights that ``load_network`` reads, and the config of their run."""
    path = Path(source).expanduser()
    if not (path.exists() or source.startswith(TAGS)):
        raise UserError(f"{source}: no such file or folder; name a finished run's folder, or a .ckpt file of one")
    if path.is_dir():
        folder, record = open_finished_run(str(path))
        files, config = weights_files(folder, record), read_config(folder)
        name = main_stage_name(record) if stage is None else stage
        if name not in files:
            raise UserError(f"{source}: no network of a stage {name!r}; there are {', '.join(files)}")
        return files[name], config
    if stage is not None:
        raise UserError(f"stage {stage}: {source} is the file of one network; name its run's folder")
    file = find_network(source, "network")
    around = find_run_around(file)
    return file, None if around is None else read_config(RunFolder(around))


def _list_learned(network: ImageClassifier) -> list[list[int]]:
    """Return the columns of each task that a network with several heads has learned; none for a network with one."""
    head = network.head
    if not isinstance(head, Heads):
        return []
    return [columns for columns, is_learned in zip(head.tasks, head.learned.tolist(), strict=True) if is_learned]


def _choose_task(source: str, network: ImageClassifier, task: int | None) -> tuple[int, ...] | None:
    """Return the columns of the task that is meant; None for a network with one head."""
    if not isinstance(network.head, Heads):
        if task is not None:
            raise UserError(f"task {task}: {source} has one task; leave it out")
        return None
    learned = _list_learned(network)
    if task is None and len(learned) == 1:
        return tuple(learned[0])
    if task is None or not 1 <= task <= len(learned):
        names = network.spec.classes
        lines = "; ".join(
            f"{number} is {abbreviate([names[column] for column in columns])}"
            for number, columns in enumerate(learned, 1)
        )
        raise UserError(f"{source}: its network has {len(learned)} tasks; choose one by its number, task N: {lines}")
    return tuple(learned[task - 1])
