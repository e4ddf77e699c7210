"""A network's predictions on the test set as a table, ``test.parquet``, for people and for the report."""

import json
from pathlib import Path

import numpy as np

from tutelage.data import UNKNOWN, Predictions, Source
from tutelage.storage import write_whole

CLASSES = b"classes"  # the key in the table's metadata: a JSON list of names, in the order of the probabilities


def write_predictions(file: Path, predictions: Predictions, classes: tuple[str, ...], source: Source) -> None:
    """Write a row for each image, in the order of the predictions.

    The columns are ``index`` (of the image in the data), ``path`` (where the images have file names), ``truth`` and
    ``predicted`` (names of classes; truth is null where it is not known), and ``probabilities`` (a float32 for each
    class).

    Args:
        file: the table.
        predictions: on images of ``source``.
        classes: the names of the network's classes; of two with the same name, test images have the first.
        source: the data.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = list(dict.fromkeys(classes))
    code_of = {name: code for code, name in enumerate(names)}
    codes = np.array([code_of[name] for name in classes], dtype=np.int32)
    unknown = predictions.labels == UNKNOWN
    truth = pa.array(codes[np.where(unknown, 0, predictions.labels)], mask=unknown)
    probabilities = np.ascontiguousarray(predictions.probabilities, dtype=np.float32)
    columns = {"index": pa.array(predictions.indices, pa.int64())}
    if source.has_file_names:
        columns["path"] = pa.array([source.names[index] for index in predictions.indices.tolist()], pa.string())
    columns["truth"] = pa.DictionaryArray.from_arrays(truth, names)
    columns["predicted"] = pa.DictionaryArray.from_arrays(codes[probabilities.argmax(axis=1)], names)
    columns["probabilities"] = pa.FixedSizeListArray.from_arrays(probabilities.ravel(), len(classes))
    table = pa.table(columns).replace_schema_metadata({CLASSES: json.dumps(classes)})
    write_whole(file, lambda out: pq.write_table(table, out, use_dictionary=["truth", "predicted"]))


def read_classes(file: Path) -> list[str]:
    """Return the names of the classes in the order of the probabilities that ``write_predictions`` has written."""
    import pyarrow.parquet as pq

    classes: list[str] = json.loads(pq.read_schema(file).metadata[CLASSES])
    return classes


def read_predictions(file: Path) -> Predictions:
    """Return what ``write_predictions`` has written."""
    import pyarrow.parquet as pq

    table = pq.read_table(file, columns=["index", "truth", "probabilities"])
    classes = json.loads(table.schema.metadata[CLASSES])
    label_of = {name: label for label, name in reversed([*enumerate(classes)])} | {None: UNKNOWN}
    labels = np.array([label_of[name] for name in table["truth"].to_pylist()], dtype=np.int64)
    probabilities = np.array(table["probabilities"].combine_chunks().flatten()).reshape(-1, len(classes))
    return Predictions(probabilities, labels, np.array(table["index"].combine_chunks()))
