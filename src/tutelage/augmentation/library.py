"""Albumentations and OpenCV, imported as they serve a loader.

Without Albumentations' look-up of newer versions (two seconds where there is no network), and with OpenCV on one core:
it is the workers that work side by side, and one that is forked from a process whose OpenCV had threads would wait for
them for ever.
"""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations
import cv2

cv2.setNumThreads(1)

__all__ = ["albumentations"]
