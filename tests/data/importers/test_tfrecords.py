"""TFRecord frames written here, with a crc32c from its polynomial, are read and checked."""

import json
import struct

import pytest

from jaxcls.data.importers import tfrecords
from jaxcls.errors import InputError

TABLE = []
for value in range(256):
    for _ in range(8):
        value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    TABLE.append(value)

CONTENTS = [b"123456789", b"", bytes(range(256)) * 5]


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def masked(data):
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32)


def frame(data, length=None):
    size = struct.pack("<Q", len(data) if length is None else length)
    return size + masked(size) + data + masked(data)


def flipped(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.fixture
def written(tmp_path):
    """``written(data)`` -> the path of a file that holds it."""

    def write(data):
        path = tmp_path / "some.tfrecord"
        path.write_bytes(data)
        return path

    return write


def test_the_checksum_of_these_tests_is_crc32c():
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4.
    assert crc32c(bytes(range(32))) == 0x46DD794E


def test_records_come_back_in_order(written):
    path = written(b"".join(frame(data) for data in CONTENTS))
    assert list(tfrecords.records(path)) == CONTENTS
    assert list(tfrecords.records(written(b""))) == []


TWO = frame(b"first") + frame(b"second")  # Records of 21 and 22 bytes.
AT_SECOND = "some.tfrecord: record 1 at byte 21 "


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (TWO[:26], AT_SECOND + "is cut short in its header"),
        (TWO[:-1], AT_SECOND + "is cut short: 9 of 10 bytes are left"),
        (flipped(TWO, 21), AT_SECOND + "has a length whose checksum (crc32c) does not"),
        (flipped(TWO, 33), AT_SECOND + "has data whose checksum (crc32c) does not match"),
        (
            TWO[:21] + frame(b"second", length=2**62),
            AT_SECOND + f"states an absurd length of {2**62} bytes",
        ),
    ],
)
def test_a_damaged_record_is_named_after_the_good_ones(written, data, said):
    reading = tfrecords.records(written(data))
    assert next(reading) == b"first"
    with pytest.raises(InputError) as refused:
        next(reading)
    assert said in str(refused.value)
    assert "copy the file again" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_every_flipped_bit_is_found(written):
    for place in range(len(TWO)):
        with pytest.raises(InputError, match="record"):
            list(tfrecords.records(written(flipped(TWO, place))))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.tfrecord cannot be read \(No such file"):
        list(tfrecords.records(tmp_path / "gone.tfrecord"))


def dataset(folder, **info):
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(json.dumps({"name": "x", **info}))
    return folder


@pytest.mark.parametrize("info", [{"fileFormat": "tfrecord"}, {}])
def test_a_dataset_is_known_by_its_folder_or_the_one_above(tmp_path, info):
    folder = dataset(tmp_path / "x" / "1.0.0", **info)
    (tmp_path / "x" / "notes").mkdir()
    dataset(tmp_path / "x" / "2.0.0", fileFormat="array_record")
    for path in (folder, tmp_path / "x"):
        assert tfrecords.tfds_folder(path) == folder
    assert tfrecords.tfds_folder(tmp_path) is None
    second = dataset(tmp_path / "x" / "10.2.0")
    assert tfrecords.tfds_folder(tmp_path / "x") is None
    assert tfrecords.tfds_folder(second) == second


@pytest.mark.parametrize("text", ["", "{", "[]", '"tfrecord"', "[" * 100_000, "\xff"])
def test_a_damaged_info_is_no_dataset(tmp_path, text):
    (tmp_path / "dataset_info.json").write_text(text, "latin1")
    assert tfrecords.tfds_folder(tmp_path) is None
    assert tfrecords.tfds_folder(tmp_path / "dataset_info.json") is None
    assert tfrecords.tfds_folder(tmp_path / "nowhere") is None
