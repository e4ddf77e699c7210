"""Albumentations, imported without its look-up of newer versions (two seconds where there is no network)."""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations

__all__ = ["albumentations"]
