"""Where a decoder can begin in H.264 data, read without decoding them."""

from collections.abc import Iterator

import av


def nal_length_bytes(context: av.VideoCodecContext) -> int:
    """Return how many bytes hold the length of an H.264 stream's NAL units, 0 for other streams.

    It is in the fifth byte of avcC, the configuration in mp4 and Matroska (ISO 14496-15). H.264
    without it (transport streams) counts as another stream: decord misreads it even in sequence.
    """
    configuration = context.extradata or b""
    if context.name != "h264" or configuration[:1] != b"\x01":
        return 0
    return (configuration[4] & 3) + 1


def split_units(data: bytes, length_bytes: int) -> Iterator[bytes]:
    """Yield an H.264 packet's NAL units; without `length_bytes` at start codes (Annex B)."""
    if not length_bytes:
        yield from filter(None, data.split(b"\0\0\1")[1:])
        return
    at = 0
    while at + length_bytes < len(data):
        begin = at + length_bytes
        at = begin + int.from_bytes(data[at:begin], "big")
        if at > begin:
            yield data[begin:at]


def contains_idr(units: list[bytes]) -> bool:
    """Return whether a keyframe is an IDR picture (ITU-T H.264, 7.4.1.2.4).

    Only at one of these is a decoder that seeks in the same state as one that decoded all before.
    """
    return any(unit[0] & 31 == 5 for unit in units)


def is_settings(unit: bytes) -> bool:
    """Return whether a unit is a sequence parameter set, which holds the pictures' size (7.3.2)."""
    return unit[0] & 31 == 7


def is_recovery_picture(units: list[bytes]) -> bool:
    """Return whether a keyframe is an I picture after which all frames shown are right at once.

    Open GOPs have these. With intra refresh pictures recover gradually, yet containers call the
    first of them a keyframe.
    """
    begin = next((unit[1] for unit in units if unit[0] & 31 == 1 and len(unit) > 1), 0)
    # The bits of first_mb_in_slice 0 and slice_type 2 or 7, both I (7.3.3, 9.1).
    intra = begin >> 4 == 0b1011 or begin == 0b10001000
    return intra and any(_is_recovery_point(unit) for unit in units if unit[0] & 31 == 6)


def _is_recovery_point(unit: bytes) -> bool:
    """Return whether an SEI unit has a recovery point with recovery_frame_cnt 0 (D.1.8)."""
    data = unit[1:].replace(b"\0\0\3", b"\0\0")
    at = 0
    while at + 2 < len(data):
        header = []  # a message's type and size: each the sum of bytes, up to one below 255
        for _ in range(2):
            end = at
            while end < len(data) - 1 and data[end] == 255:
                end += 1
            header.append(sum(data[at : end + 1]))
            at = end + 1
        if header[0] == 6:
            return data[at : at + 1] >= b"\x80"  # the number 0 is a single bit 1 (9.1)
        at += header[1]
    return False
