"""Values as the pixels of small pictures: filters, activations, heat on an image, frames."""

import numpy as np

from tutelage.explain.fields import Box
from tutelage.explain.sheet import fit_image
from tutelage.report.templating import encode_image

FRAME = (255, 196, 0)
SIDE = 168  # pixels of a picture with heat: a multiple of MNIST's 28
MAP_SIDE = 64  # pixels of a map, at most
GREY_LEVELS = 255


def encode_filter(weights: np.ndarray) -> str:
    """Return the weights (H, W, C) of a filter as grey or RGB, C being 1 or 3: zero is in the middle of the range."""
    limit = float(np.abs(weights).max()) or 1.0
    return encode_image((GREY_LEVELS * (0.5 + 0.5 * weights / limit)).round().astype(np.uint8))


def encode_map(values: np.ndarray, limit: float) -> str:
    """Return an activation map (H, W) as grey: black is zero or less, white is ``limit``; large ones are shrunk."""
    import cv2

    pixels = (GREY_LEVELS * np.clip(values / (limit or 1.0), 0, 1)).round().astype(np.uint8)
    if max(pixels.shape) > MAP_SIDE:
        shrunk = cv2.resize(pixels, (MAP_SIDE, MAP_SIDE), interpolation=cv2.INTER_AREA)
        return encode_image(np.asarray(shrunk)[..., None])
    return encode_image(pixels[..., None])


def encode_heat(image: np.ndarray, heat: np.ndarray, frame: Box | None = None) -> str:
    """Return an image (S, S, C) in grey with heat (H, W) from 0 to 1 over it, and a frame around a box."""
    import cv2
    from matplotlib import colormaps

    base = fit_image(image, SIDE).astype(np.float32).mean(axis=2, keepdims=True) / GREY_LEVELS
    side = len(base)
    warmth = np.clip(cv2.resize(heat.astype(np.float32), (side, side), interpolation=cv2.INTER_LINEAR), 0, 1)
    colours, opacity = colormaps["inferno"](warmth)[..., :3], 0.85 * warmth[..., None] ** 0.5
    pixels = ((1 - opacity) * 0.75 * base + opacity * colours) * GREY_LEVELS
    mixed = np.ascontiguousarray(pixels.round().astype(np.uint8))
    if frame is not None:
        scale = side / len(image)
        first = (round(frame.left * scale), round(frame.top * scale))
        last = (round((frame.right + 1) * scale) - 1, round((frame.bottom + 1) * scale) - 1)
        cv2.rectangle(mixed, first, last, FRAME, thickness=2)
    return encode_image(mixed)
