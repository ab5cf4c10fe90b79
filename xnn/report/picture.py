"""Pictures of samples and weights, as PNG files in the text of a page."""

from __future__ import annotations

import base64
import math
import struct
import zlib

import numpy as np

__all__ = ["data_uri", "png", "sheet", "small"]

#: The colours of negative, zero and positive weights: blue, white and red, which those who see no red tell apart too.
_ENDS = np.array([[33, 102, 172], [247, 247, 247], [178, 24, 43]], dtype=np.float64)


def png(pixels: np.ndarray, palette: np.ndarray | None = None) -> bytes:
    """A PNG file.

    pixels: uint8 (height, width), grey or numbers of colours; or (height, width, 3), red, green and blue.
    palette: the colours (n, 3), uint8. Default None: the pixels are grey, 0 is black.

    >>> png(np.zeros((2, 3), np.uint8))[:8]
    b'\\x89PNG\\r\\n\\x1a\\n'

    Source: the PNG specification, https://www.w3.org/TR/png/.
    """
    height, width = pixels.shape[:2]
    kind = 2 if pixels.ndim == 3 else 0 if palette is None else 3
    rows = np.zeros((height, 1 + pixels[0].size), dtype=np.uint8)  # the first byte of a row: no filter
    rows[:, 1:] = pixels.reshape(height, -1)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))]
    parts += [] if palette is None else [(b"PLTE", palette.tobytes())]
    parts += [(b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")]
    chunks = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def data_uri(file: bytes) -> str:
    """A PNG file as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(file).decode()


def small(image: np.ndarray, most: int) -> np.ndarray:
    """An image (height, width, ...) with at most this many pixels on a side: means of blocks of pixels."""
    block = -(-max(image.shape[:2]) // most)
    if block <= 1:
        return image
    height, width = (-(-side // block) for side in image.shape[:2])
    padded = np.pad(
        image.astype(np.float64),
        [(0, height * block - image.shape[0]), (0, width * block - image.shape[1])]
        + [(0, 0)] * (image.ndim - 2),
        mode="edge",
    )
    blocks = padded.reshape(height, block, width, block, *image.shape[2:])
    return np.asarray(blocks.mean(axis=(1, 3)))


def sheet(tiles: np.ndarray) -> bytes:
    """A PNG file of weights, side by side with lines between them: blue below 0, white at 0, red above.

    tiles: (n, height, width). The largest weight, with or without a sign, has the full colour.
    """
    n, height, width = tiles.shape
    wished = max(1, min(n, round(math.sqrt(n * 1.6 * height / width))))
    near = range(max(1, wished * 2 // 3), min(n, wished * 3 // 2) + 1)
    columns = min(near, key=lambda count: (-n % count, abs(count - wished)))
    rows = -(-n // columns)
    tiles = np.nan_to_num(tiles.astype(np.float64), posinf=0.0, neginf=0.0)
    largest = float(np.abs(tiles).max(initial=0.0)) or 1.0
    pixels = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), 255, dtype=np.uint8)
    for place, tile in enumerate(np.rint(tiles / largest * 127.0 + 127.0).astype(np.uint8)):
        top, left = (place // columns) * (height + 1), (place % columns) * (width + 1)
        pixels[top : top + height, left : left + width] = tile
    return png(pixels, _palette())


def _palette() -> np.ndarray:
    """255 colours from blue to red, and the grey of the lines between tiles."""
    places = np.linspace(0.0, 2.0, 255)
    colours = [np.interp(places, [0.0, 1.0, 2.0], _ENDS[:, channel]) for channel in range(3)]
    return np.vstack([np.rint(np.stack(colours, axis=1)), [[128, 128, 128]]]).astype(np.uint8)
