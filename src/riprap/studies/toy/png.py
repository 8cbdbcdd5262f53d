"""Smaller PNG files: the figures' renderer is quick rather than thorough at packing."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

SIGNATURE = 8  # bytes before the first chunk
FRAME = 12  # bytes of a chunk beside its data: length, kind, checksum


def shrink(file: Path) -> Path:
    """Pack the pixels of a PNG again, as tightly as zlib can; no pixel changes.

    Layout of the file: PNG specification, section 5.
    """
    content = file.read_bytes()
    before, pixels, after = b"", b"", b""
    at = SIGNATURE
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        chunk = content[at : at + FRAME + length]
        if chunk[4:8] == b"IDAT":
            pixels += chunk[8:-4]
        elif pixels:
            after += chunk
        else:
            before += chunk
        at += FRAME + length
    packed = b"IDAT" + zlib.compress(zlib.decompress(pixels), 9)
    framed = struct.pack(">I", len(packed) - 4) + packed + struct.pack(">I", zlib.crc32(packed))
    file.write_bytes(content[:SIGNATURE] + before + framed + after)
    return file
