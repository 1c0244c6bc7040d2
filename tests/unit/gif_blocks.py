"""GIF blocks: what a file holds, read by the format's specification (GIF89a, 1990) without Pillow."""

import struct
from typing import NamedTuple


class GifFile(NamedTuple):
    delays: list[int]  # hundredths of a second
    num_colour_tables: int
    loops: int | None  # 0 is for ever
    comment: bytes


def parse_gif(data: bytes) -> GifFile:
    """Walks the blocks to the end of the file."""
    assert data[:6] == b"GIF89a"
    position = 13 + 3 * (2 << (data[10] & 7))
    delays, tables, loops, comment = [], 1, None, b""
    while data[position] != 0x3B:
        kind, label = data[position], data[position + 1]
        if kind == 0x2C:
            flags = data[position + 9]
            tables += flags >> 7
            position += 11 + (3 * (2 << (flags & 7)) if flags >> 7 else 0)
        else:
            position += 2
        body = b""
        while data[position]:
            body += data[position + 1 : position + 1 + data[position]]
            position += 1 + data[position]
        position += 1
        if kind == 0x21 and label == 0xF9:
            delays.append(struct.unpack("<H", body[1:3])[0])
        elif kind == 0x21 and label == 0xFF:
            loops = struct.unpack("<H", body[12:14])[0]
        elif kind == 0x21 and label == 0xFE:
            comment = body
    assert position == len(data) - 1
    return GifFile(delays, tables, loops, comment)
