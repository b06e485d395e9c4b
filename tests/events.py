"""TensorBoard's event files, read as TFRecords by hand."""

import struct

from tensorboardX.proto.event_pb2 import Event


def values(folder):
    """(tag, step, summary value) of all event files, in order."""
    for file in sorted(folder.glob("*")):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += 12 + length + 4
            for value in event.summary.value:
                yield value.tag, event.step, value


def scalars(folder):
    """{(tag, step): value} of the scalars."""
    found = values(folder)
    return {
        (t, s): v.simple_value
        for t, s, v in found
        if v.WhichOneof("value") == "simple_value"
    }
