"""scikit-learn's handwritten digits."""

import numpy as np

from tutelage.data.source import IndexNames, Source, convert_channels, empty_indices, resize_center_crop
from tutelage.data.stratify import draw_stratified
from tutelage.randomness import Key

TEST_IMAGES = 450


def digits(image_size: int, channels: int) -> Source:
    """Return scikit-learn's 1,797 handwritten digits, enlarged from 8x8.

    The test set is 450 of them, stratified and the same for every seed.
    """
    from sklearn.datasets import load_digits

    dataset = load_digits()
    grey = np.round(dataset.images * (255 / 16)).astype(np.uint8)[..., None]
    images = np.stack([resize_center_crop(image, image_size) for image in grey])
    labels = dataset.target.astype(np.int64)
    indices = np.arange(len(labels))
    test = draw_stratified(indices, labels, TEST_IMAGES, Key(0, "digits", "test"))
    return Source(
        images=convert_channels(images, channels),
        labels=labels,
        classes=tuple(map(str, range(10))),
        train=np.setdiff1d(indices, test),
        test=test,
        val=empty_indices(),
        unlabelled=empty_indices(),
        names=IndexNames(len(labels)),
    )
