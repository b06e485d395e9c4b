"""TFRecord frames written here, with a crc32c from its polynomial, are read and checked."""

import json
import pathlib
import struct
import tempfile

import google_crc32c
import hypothesis
import hypothesis.strategies as st
import pytest

from jaxcls.data.importers import tfrecords
from jaxcls.errors import InputError
from tests.properties import examples


def masked(data):
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32)


def frame(data, length=None):
    """A record as TFRecord frames it; length: another one than that of the data."""
    size = struct.pack("<Q", len(data) if length is None else length)
    return size + masked(size) + data + masked(data)


def read(data):
    """The records of a file of these bytes, and the refusal that ends them, or ""."""
    found = []
    with tempfile.NamedTemporaryFile(suffix=".tfrecord") as file:
        file.write(data)
        file.flush()
        try:
            found += tfrecords.records(pathlib.Path(file.name))
        except InputError as refused:
            return found, str(refused)
    return found, ""


def test_the_checksum_is_crc32c_masked():
    assert google_crc32c.value(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4.
    assert tfrecords.masked_crc(bytes(32)) == struct.pack("<I", 0x0FD7FFFA)


contents = st.lists(st.binary(max_size=40) | st.just(bytes(range(256)) * 5), max_size=4)


@examples
@hypothesis.given(contents)
def test_records_come_back_in_order(records):
    assert read(b"".join(map(frame, records))) == (records, "")


@examples
@hypothesis.given(contents, st.binary(max_size=40), st.data())
def test_a_record_that_is_cut_or_changed_is_named_after_the_good_ones(good, last, draw):
    framed = frame(last)
    place = draw.draw(st.integers(0, len(framed) - 1))
    flipped = framed[place] ^ 1 << draw.draw(st.integers(0, 7))
    changed = framed[:place] + bytes([flipped]) + framed[place + 1 :]
    start = b"".join(map(frame, good))
    for damaged in (changed, framed[: max(1, place)]):
        found, said = read(start + damaged)
        assert found == good
        assert f".tfrecord: record {len(good)} at byte {len(start)} " in said
        assert said.endswith("; copy the file again, or prepare the dataset again")
        assert "\n" not in said


def test_a_record_of_a_length_beyond_the_file_is_refused():
    assert "record 0 at byte 0 is cut short" in read(frame(b"second", 2**62))[1]


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
