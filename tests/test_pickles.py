"""Pickles give what Python's own reader gives of plain values, and hostile ones a line."""

import contextlib
import io
import pickle
import struct
import time
import tracemalloc

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jaxcls import pickles
from jaxcls.data.importers.cifar import load as load_cifar
from jaxcls.errors import InputError
from jaxcls.models.weights import torchfiles
from jaxcls.pickles import Global, RefusedError
from tests.data.importers.test_cifar import python2
from tests.properties import examples
from tests.torchbytes import Raw, legacy, saved, zipped


def state(value, given):
    raise RefusedError("state")


def joined(*arguments):
    return list(arguments)


NAMES = {Global("some", "joined"): joined, Global("a", "b"): None}


def load(data, **options):
    return pickles.load(io.BytesIO(data), NAMES, state, **options)


keys = st.none() | st.booleans() | st.integers(-(2**59), 2**59) | st.text()
plain = st.recursive(
    keys | st.integers() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(keys, inner),
    max_leaves=20,
)


@examples
@hypothesis.given(plain, st.integers(0, 5))
def test_plain_values_come_back_and_the_file_is_left_after_them(value, protocol):
    file = io.BytesIO(pickle.dumps(value, protocol) + b"rest")
    found = pickles.load(file, NAMES, state)
    assert repr(found) == repr(value)  # Which tells 1 from 1.0 and True.
    assert file.read() == b"rest"


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_bytes_and_shared_and_circular_values_come_back(protocol):
    shared = [b"x", b"y" * 300]
    found = load(pickle.dumps((shared, shared), protocol))
    assert found == (shared, shared)
    assert found[0] is found[1]
    shared.append(shared)
    found = load(pickle.dumps(shared, protocol))
    assert found[2] is found


def test_strings_of_python_2_are_texts():
    assert load(b"(lp0\nS'a'\naU\x02\xe9bap1\n.") == ["a", "éb"]


def test_names_are_called_or_passed_on_as_the_table_says():
    assert load(b"csome\njoined\n(K\x01K\x02tR.") == [1, 2]
    assert load(b"csome\njoined\n(ca\nb\ntR.") == [Global("a", "b")]
    for data, reason in {
        b"ca\nb\n)R.": "it calls a.b",
        b"cos\nsystem\n.": "it names os.system, which is refused",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.": "it names os.system, which is refused",
        b"csome\njoined\n(" + b"N" * 17 + b"tR.": "it calls joined with 17 arguments",
        b"csome\njoined\nK\x01b.": "state",
        b"NQ.": "it has a persistent id",
        b"(icopyreg\nx\n.": "it has opcode INST",
    }.items():
        with pytest.raises(RefusedError) as refused:
            load(data)
        assert str(refused.value).startswith(reason)
    assert load(b"K\x07Q.", persistent=lambda identity: identity + 1) == 8


def nested(levels):
    """A list that has ten times the last one, and so on, which its memo makes cheap."""
    made = b"](K\x01e\x94"
    for level in range(levels):
        made += b"](" + b"h" + bytes([level]) + (b"h" + bytes([level])) * 9 + b"e\x94"
    return made


# As the opcodes of a value. Each is at most some megabytes.
MANY = 30_000
TEXT = b"X" + struct.pack("<i", 1_000_000) + b"a" * 1_000_000 + b"\x94"
COLLIDING = b"".join(b"\x8a\x0d" + (k * (2**61 - 1)).to_bytes(13, "little") + b"N"
                     for k in range(1, MANY))  # fmt: skip
DEEP = b")" + b"\x85" * 100_000
HOSTILE = {
    "nested lists as a name": nested(20) + b"\x8c\x01x\x93",
    "nested lists as a module": b"\x8c\x01x" + nested(20) + b"\x93",
    "nested lists as a key": b"}" + nested(20) + b"Ns",
    "nested lists as an encoding": (
        b"c_codecs\nencode\nX\x01\0\0\0a" + nested(20) + b"\x86R"
    ),
    "nested lists as a dtype": b"cnumpy\ndtype\n" + nested(20) + b"\x85R",
    "nested lists called": nested(20) + b")R",
    "a far place in the memo": b"Nr\xff\xff\xff\x7f",
    "a tuple of great depth as a key": b"}" + DEEP + b"Ns",
    "a tuple of great depth as a name": b"\x8c\x01x" + DEEP + b"\x93",
    "a tuple of great depth called": DEEP + b")R",
    "a length that is not there": b"T\xff\xff\xff\x7f",
    "a length beyond all": b"\x8d" + b"\xff" * 7 + b"\x7f",
    "many marks": b"(" * 100_000 + b"Q",
    "more opcodes than are followed": b"N" * 150_001,
    "keys of one hash": b"}(" + COLLIDING + b"u",
    "one text in many calls": (
        b"](" + TEXT + (b"c_codecs\nencode\nh\0X\x06\0\0\0latin1\x86R" * 20_000) + b"e"
    ),
    "one list in many calls": (
        b"](" + b"(" + b"N" * MANY + b"l\x94"
        + b"ccollections\nOrderedDict\nh\0\x85R" * MANY + b"e"
    ),
    "one tuple as many arguments": (
        b"(" + b"N" * MANY + b"t\x94"
        + b"ctorch\ndevice\nh\0R" * MANY
    ),
    "one tuple as many sizes": (
        b"(" + b"N" * MANY + b"t\x94" + b"ctorch\nSize\nh\0\x85R" * MANY + b"Q"
    ),
    "a shape of a great product": (
        b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01("
        + (b"\x8a\xff" + b"\xff" * 254 + b"\x7f") * 5000
        + b"tcnumpy\ndtype\n(U\x02u1tRI00\nU\x01atb"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_one_line_soon_and_in_little_memory(
    tmp_path, name, monkeypatch
):
    monkeypatch.setattr(pickles, "MOST_OPCODES", 150_000)
    opcodes = HOSTILE[name]
    path = tmp_path / "x.pth"

    def as_cifar():
        data = b"\x80\x04" + opcodes + b"."
        load_cifar(data, "x")

    def as_torch():
        torchfiles.load(path)

    for write, read in ((None, as_cifar), (zipped, as_torch), (legacy, as_torch)):
        if write:
            path.write_bytes(write({"w": Raw(opcodes)}, {}))
        tracemalloc.start()
        began = time.monotonic()
        with pytest.raises(InputError) as refused:
            read()
        seconds = time.monotonic() - began
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert str(refused.value).isprintable()
        assert len(str(refused.value)) < 500
        assert peak < 20e6 + 120 * len(opcodes)
        assert seconds < 30  # Of hours, tracing and a busy machine.


GOOD = [
    python2({"data": np.zeros((1, 3072), np.uint8)[:, :40], "fine_labels": [5, 6]}),
    pickle.dumps({"data": np.zeros((1, 40), np.uint8), "labels": [1]}, 2),
    legacy({}, {}),
    saved({"w": np.ones((2, 3), np.float32), "n": np.array(3)}, legacy),
    saved({"w": np.ones((2, 3), np.float32), "n": np.array(3)}, zipped),
]


def read_as_both(data, folder):
    path = folder / "x.pth"
    path.write_bytes(data)
    for read in (
        lambda: torchfiles.load(path),
        lambda: load_cifar(data, "x"),
    ):
        with contextlib.suppress(InputError):
            read()


@examples
@hypothesis.given(data=st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(tmp_path_factory, data):
    read_as_both(data, tmp_path_factory.getbasetemp())


@examples
@hypothesis.given(
    good=st.sampled_from(GOOD),
    changes=st.lists(
        st.tuples(st.integers(0, 1500), st.integers(0, 3), st.binary(max_size=8)),
        min_size=1, max_size=5,
    ),
)  # fmt: skip
def test_good_files_with_changes_anywhere_are_read_or_refused(
    tmp_path_factory, good, changes
):
    data = good
    for place, length, put in changes:
        place %= len(data) or 1
        data = data[:place] + put + data[place + length :]
    read_as_both(data, tmp_path_factory.getbasetemp())
