"""Workers over time: a row a worker, the darker the more."""

from __future__ import annotations

import struct
import zlib
from base64 import b64encode
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY_AND_ALPHA = 4


def heatmap(values: NDArray[np.float64], most: float) -> str:
    """A PNG as the address of an image: shape (workers, windows), from nothing at 0 to full at `most`.

    Only its opacity matters: the page gives it the policy's colour by using it as a mask.
    """
    strength = np.clip(np.nan_to_num(values) / most if most > 0 else np.zeros_like(values), 0.0, 1.0)
    pixels = np.zeros((*values.shape, 2), np.uint8)
    pixels[..., 1] = np.rint(255 * strength)
    return f"data:image/png;base64,{b64encode(_png(pixels)).decode()}"


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode shape (rows, columns, 2). Source: the PNG specification, W3C, third edition."""
    rows, columns, _ = pixels.shape
    header = struct.pack(">IIBBBBB", columns, rows, 8, _GREY_AND_ALPHA, 0, 0, 0)
    unfiltered = np.concatenate([np.zeros((rows, 1), np.uint8), pixels.reshape(rows, -1)], axis=1).tobytes()
    chunks = (_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(unfiltered, 9)), _chunk(b"IEND", b""))
    return _SIGNATURE + b"".join(chunks)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
