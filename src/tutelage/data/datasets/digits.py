"""scikit-learn's handwritten digits."""

import numpy as np

from tutelage.data.source import Numbered, Source, no_images, resized, with_channels
from tutelage.data.stratify import stratified
from tutelage.randomness import Key

TEST_IMAGES = 450


def digits(image_size: int, channels: int) -> Source:
    """Return scikit-learn's 1,797 handwritten digits, enlarged from 8x8.

    The test set is 450 of them, stratified and the same for every seed.
    """
    from sklearn.datasets import load_digits

    loaded = load_digits()
    grey = np.round(loaded.images * (255 / 16)).astype(np.uint8)[..., None]
    images = np.stack([resized(image, image_size) for image in grey])
    labels = loaded.target.astype(np.int64)
    everything = np.arange(len(labels))
    test = stratified(everything, labels, TEST_IMAGES, Key(0, "digits", "test"))
    return Source(
        images=with_channels(images, channels),
        labels=labels,
        classes=tuple(map(str, range(10))),
        train=np.setdiff1d(everything, test),
        test=test,
        val=no_images(),
        unlabelled=no_images(),
        names=Numbered(len(labels)),
    )
