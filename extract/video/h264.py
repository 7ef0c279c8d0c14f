"""What H.264 data say about themselves, read without decoding: where can a decoder begin?"""

from collections.abc import Iterator

import av


def unit_length(context: av.VideoCodecContext) -> int:
    """Return how many bytes hold the length of an H.264 stream's NAL units, 0 for other streams.

    avcC, the configuration in mp4 and Matroska (ISO 14496-15), says so in its fifth byte. H.264
    without it (transport streams) counts as another stream: decord misreads it even in sequence.
    """
    configuration = context.extradata or b""
    if context.name != "h264" or configuration[:1] != b"\x01":
        return 0
    return (configuration[4] & 3) + 1


def units(data: bytes, unit_length: int) -> Iterator[bytes]:
    """Yield an H.264 packet's NAL units; with no `unit_length` start codes part them (Annex B)."""
    if not unit_length:
        yield from filter(None, data.split(b"\0\0\1")[1:])
        return
    at = 0
    while at + unit_length < len(data):
        begin = at + unit_length
        at = begin + int.from_bytes(data[at:begin], "big")
        if at > begin:
            yield data[begin:at]


def holds_idr(units: list[bytes]) -> bool:
    """Return whether a keyframe is an IDR picture (ITU-T H.264, 7.4.1.2.4).

    Only there a decoder that jumps to it is in the state of one that came from before.
    """
    return any(unit[0] & 31 == 5 for unit in units)


def recovers_at_once(units: list[bytes]) -> bool:
    """Return whether a keyframe is an I picture from which all that is shown later is right.

    Open GOPs have those. With intra refresh the pictures recover only bit by bit, yet containers
    call the first of them a keyframe.
    """
    begin = next((unit[1] for unit in units if unit[0] & 31 == 1 and len(unit) > 1), 0)
    # The bits of first_mb_in_slice 0 and slice_type 2 or 7, both I (7.3.3, 9.1).
    intra = begin >> 4 == 0b1011 or begin == 0b10001000
    return intra and any(_tells_recovery(unit) for unit in units if unit[0] & 31 == 6)


def _tells_recovery(unit: bytes) -> bool:
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
            return data[at : at + 1] >= b"\x80"  # a leading 1 is all of the number 0 (9.1)
        at += header[1]
    return False
