"""Decode the bitmaps of deletion vectors: sets of row positions in the portable 64-bit format of Roaring.

https://github.com/RoaringBitmap/RoaringFormatSpec, after Delta's magic number. A library for this would be one more
compiled dependency.
"""

import struct

import numpy as np

_MAGIC = 1681511377
# The cookies that a 32-bit bitmap starts with: without and with runs.
_PLAIN, _WITH_RUNS = 12346, 12347
# A container with more values is stored as a bitmap of 8 KiB.
_MAX_ARRAY = 4096
_BITMAP_BYTES = 8192
# Smaller bitmaps with runs have no table of offsets.
_MIN_OFFSETS = 4


def positions(data: bytes) -> np.ndarray:
    """Return the sorted positions in a bitmap.

    Raises:
        ValueError: the data has another format, or is cut.
    """
    try:
        magic, buckets = struct.unpack_from("<iq", data)
        if magic != _MAGIC:
            raise ValueError(f"unknown bitmap format {magic}")
        found, at = [np.empty(0, np.int64)], 12
        for _ in range(buckets):
            (high,) = struct.unpack_from("<i", data, at)
            low, at = _bitmap(data, at + 4)
            found.append((high << 32) + low)
    except struct.error as error:
        raise ValueError("the bitmap is cut") from error
    return np.concatenate(found)


def _bitmap(data: bytes, at: int) -> tuple[np.ndarray, int]:
    """Decode the 32-bit bitmap at an offset; returns its values and the offset of its end."""
    (cookie,) = struct.unpack_from("<I", data, at)
    at += 4
    if cookie & 0xFFFF == _WITH_RUNS:
        size = (cookie >> 16) + 1
        flags = np.frombuffer(data, np.uint8, (size + 7) // 8, at)
        is_run, at = np.unpackbits(flags, count=size, bitorder="little").astype(bool), at + len(flags)
    elif cookie == _PLAIN:
        (size,) = struct.unpack_from("<I", data, at)
        is_run, at = np.zeros(size, bool), at + 4
    else:
        raise ValueError(f"unknown bitmap cookie {cookie}")
    header = np.frombuffer(data, "<u2", 2 * size, at).astype(np.int64)
    at += 4 * size
    if cookie == _PLAIN or size >= _MIN_OFFSETS:
        at += 4 * size
    found = [np.empty(0, np.int64)]
    for key, count, run in zip(header[::2], header[1::2] + 1, is_run, strict=True):
        if run:
            (runs,) = struct.unpack_from("<H", data, at)
            pairs = np.frombuffer(data, "<u2", 2 * runs, at + 2).astype(np.int64)
            low = np.concatenate([np.arange(start, start + more + 1) for start, more in pairs.reshape(-1, 2)])
            at += 2 + 4 * runs
        elif count <= _MAX_ARRAY:
            low = np.frombuffer(data, "<u2", count, at).astype(np.int64)
            at += 2 * int(count)
        else:
            bits = np.frombuffer(data, np.uint8, _BITMAP_BYTES, at)
            low = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
            at += _BITMAP_BYTES
        if len(low) != count:
            raise ValueError("a part of the bitmap has another number of values than it says")
        found.append((key << 16) + low)
    return np.concatenate(found), at
