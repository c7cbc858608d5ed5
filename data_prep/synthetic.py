"""Ten classes of drawn shapes, to try fastcifar without a download.

A shape's position, size, rotation and colours are random, so no single pixel shows its class: a linear model cannot learn it,
a small convolutional network learns it in a minute or two.
"""

import numpy as np

CLASSES = (
    "disk",
    "ring",
    "square",
    "frame",
    "triangle",
    "plus",
    "saltire",
    "horizontal_stripes",
    "vertical_stripes",
    "checkerboard",
)
SIZE = 32
TRAIN_COUNT, TEST_COUNT = 10_000, 2_000
CHUNK = 1_000  # images drawn at a time, to bound memory


def draw(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw `count` images (count, 32, 32, 3) uint8 with labels (count,) int64, classes evenly mixed."""
    rng = np.random.Generator(np.random.PCG64(seed))
    labels = rng.permutation(np.arange(count) % len(CLASSES))
    chunks = [_draw(labels[start : start + CHUNK], rng) for start in range(0, count, CHUNK)]
    return np.concatenate(chunks), labels


def _draw(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    inside = _shapes(*_coordinates(len(labels), rng))[labels, np.arange(len(labels))]
    back, front = _colours(len(labels), rng)
    images = np.where(inside[..., None], front, back) + rng.normal(0, 0.06, (*inside.shape, 3))
    return (images.clip(0, 1) * 255).round().astype(np.uint8)


def _coordinates(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw a frame for each image's shape, of radius 1; return its pixel coordinates: u right, v down, (count, 32, 32)."""

    def uniform(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, (count, 1, 1))

    radius = uniform(7, 12)
    x0, y0 = (radius - 1 + uniform(0, 1) * (SIZE + 1 - 2 * radius) for _ in range(2))
    angle = np.deg2rad(uniform(-12, 12))
    x, y = np.arange(SIZE) - x0, np.arange(SIZE)[:, None] - y0
    return (np.cos(angle) * x + np.sin(angle) * y) / radius, (np.cos(angle) * y - np.sin(angle) * x) / radius


def _shapes(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Masks of the pixels inside the shape, for every class: (10, count, 32, 32) bool."""
    r, m = np.hypot(u, v), np.maximum(abs(u), abs(v))
    p, q = (u + v) / np.sqrt(2), (u - v) / np.sqrt(2)
    stripe_u, stripe_v = np.sin(3 * np.pi * u) > 0, np.sin(3 * np.pi * v) > 0
    return np.stack(
        [
            r < 1,
            (r < 1) & (r > 0.6),
            m < 0.85,
            (m < 0.9) & (m > 0.5),
            (v < 0.8) & (v > 2 * abs(u) - 1),
            (m < 1) & (np.minimum(abs(u), abs(v)) < 0.25),
            (r < 1.2) & (np.minimum(abs(p), abs(q)) < 0.25),
            (m < 0.9) & stripe_v,
            (m < 0.9) & stripe_u,
            (m < 0.9) & (stripe_u ^ stripe_v),
        ]
    )


def _colours(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw two colours per image, (count, 1, 1, 3) each, one clearly brighter; either of them may be it."""
    dark = rng.uniform(0, 0.4, (count, 1, 1, 3))
    light = rng.uniform(0.6, 1, (count, 1, 1, 3))
    swap = rng.random((count, 1, 1, 1)) < 0.5
    return np.where(swap, light, dark), np.where(swap, dark, light)
