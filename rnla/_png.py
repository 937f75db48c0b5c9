"""Grey pictures as PNG files, with the standard library only."""

import struct
import zlib

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def write_png(file, picture):
    """Write a grey picture into an open file.

    Parameters
    ----------
    file : binary file
        Open for writing.
    picture : ndarray of uint8, shape (height, width)
        0 is black, 255 white.

    Raises
    ------
    TypeError
        If the picture is not of uint8.
    ValueError
        If it is not two-dimensional, or empty.
    """
    caller = "rnla.write_png"
    if picture.dtype != np.uint8:
        raise TypeError(f"{caller}: picture must be of uint8; got {picture.dtype}.")
    if picture.ndim != 2 or not picture.size:
        raise ValueError(f"{caller}: picture must be of shape (height, width), not empty; got {picture.shape}.")
    height, width = picture.shape
    file.write(SIGNATURE)
    # Eight bits of grey; compression, filter and interlacing as the standard has them.
    _chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    rows = np.zeros((height, width + 1), np.uint8)  # a 0 before each row: no filter
    rows[:, 1:] = picture
    _chunk(file, b"IDAT", zlib.compress(rows.tobytes(), 9))
    _chunk(file, b"IEND", b"")


def _chunk(file, name, content):
    file.write(struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content)))
