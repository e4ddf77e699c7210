"""Albumentations and OpenCV, imported with the settings that data loading needs.

Albumentations does not look for newer versions (that takes two seconds where there is no network). OpenCV runs on one
core: the loader's workers already run in parallel, and a worker that is forked from a process whose OpenCV had threads
would wait for them for ever.
"""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations
import cv2

cv2.setNumThreads(1)

__all__ = ["albumentations"]
