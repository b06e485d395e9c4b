"""Files as torch writes them, byte by byte and without torch."""

import io
import struct
import zipfile
from typing import NamedTuple

import ml_dtypes
import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
KINDS = {"float32": "Float", "float16": "Half", "bfloat16": "BFloat16", "float64": "Double"}
KINDS |= {"int64": "Long", "int32": "Int", "int16": "Short", "int8": "Char"}
KINDS |= {"uint8": "Byte", "bool": "Bool"}
RANDOM = np.random.default_rng(0)
# One of each of these dtypes, and of none, one, two and four dimensions.
ARRAYS = {
    "conv.weight": RANDOM.normal(size=(2, 3, 1, 2)).astype(np.float32),
    "half": RANDOM.normal(size=(3,)).astype(np.float16),
    "brain": RANDOM.normal(size=(2, 2)).astype(ml_dtypes.bfloat16),
    "double": RANDOM.normal(size=(2,)),
    "bn.num_batches_tracked": np.array(7, np.int64),
    "int": np.array([-3, 4], np.int32),
    "short": np.array([-3, 4], np.int16),
    "char": np.array([-3, 4], np.int8),
    "byte": np.array([3, 250], np.uint8),
    "bool": np.array([True, False, True]),
    "empty": np.zeros((0, 3), np.float32),
}


class Named(NamedTuple):
    module: str
    name: str


class Call(NamedTuple):
    function: object
    arguments: object


class Built(NamedTuple):
    value: object
    state: object


class Persistent(NamedTuple):
    identity: object


class Raw(NamedTuple):
    opcodes: bytes


def opcodes(value):
    """The opcodes of protocol 2 that make a value."""
    match value:
        case Raw(raw):
            return raw
        case Named(module, name):
            return f"c{module}\n{name}\n".encode()
        case Call(function, arguments):
            return opcodes(function) + opcodes(arguments) + b"R"
        case Built(made, state):
            return opcodes(made) + opcodes(state) + b"b"
        case Persistent(identity):
            return opcodes(identity) + b"Q"
        case None | True | False:
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case int():
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(data)]) + data
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return b"X" + struct.pack("<i", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(opcodes, value)) + b"t"
        case list():
            return b"](" + b"".join(map(opcodes, value)) + b"e"
        case dict():
            items = b"".join(opcodes(k) + opcodes(v) for k, v in value.items())
            return b"}(" + items + b"u"
    raise TypeError(value)


def pickled(value):
    return b"\x80\x02" + opcodes(value) + b"."


def ordered(items):
    """An OrderedDict as a state_dict is pickled, with its _metadata."""
    made = Raw(opcodes(Call(Named("collections", "OrderedDict"), ())))
    put = b"(" + b"".join(opcodes(k) + opcodes(v) for k, v in items.items()) + b"u"
    return Built(Raw(made.opcodes + put), {"_metadata": {"": {"version": 1}}})


def storage(key, dtype, count, *view):
    kind = Named("torch", f"{KINDS[dtype]}Storage")
    return Persistent(("storage", kind, key, "cpu", count, *view))


def view(of, offset, size, stride):
    """A tensor over a storage."""
    arguments = (of, offset, size, stride, False, ordered({}))
    return Call(Named("torch._utils", "_rebuild_tensor_v2"), arguments)


def tensors(arrays):
    """(entries by name, storages by key): each array in a storage of its own."""
    entries, stored = {}, {}
    for key, (name, values) in enumerate(arrays.items()):
        stored[str(key)] = values
        strides = np.zeros(values.shape, np.uint8).strides
        of = storage(str(key), values.dtype.name, values.size)
        entries[name] = view(of, 0, values.shape, strides)
    return entries, stored


def saved(arrays, write, wrap=lambda entries: entries):
    """A file, by `zipped` or `legacy`, of a state_dict in what `wrap` makes of it."""
    entries, stored = tensors(arrays)
    return write(wrap(ordered(entries)), stored)


def zipped(content, stored, order=b"little", name="archive", method=zipfile.ZIP_STORED):
    """A file of torch 1.6 or later; `stored`: the storages by key."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr(f"{name}/data.pkl", pickled(content))
        if order:
            archive.writestr(f"{name}/byteorder", order)
        for key, values in stored.items():
            archive.writestr(f"{name}/data/{key}", values.tobytes())
        archive.writestr(f"{name}/version", b"3\n")
    return file.getvalue()


def legacy(content, stored, magic=MAGIC, protocol=1001, keys=None):
    """A file of torch before 1.6."""
    information = {"protocol_version": 1001, "little_endian": True}
    data = b"".join(map(pickled, (magic, protocol, information, content)))
    data += pickled(sorted(stored) if keys is None else keys)
    for key in sorted(stored):
        data += struct.pack("<q", stored[key].size) + stored[key].tobytes()
    return data
