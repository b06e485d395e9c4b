"""Records as TFDS's own serialiser and hashlib see them."""

import hashlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxcls.data.example import Example, parse, serialize

EXAMPLE = Example(b"train/a/1.png", b"\x89PNG not really", 7)


def test_tfds_reads_what_is_written():
    features = tfds.features.FeaturesDict(
        {
            "file_name": tfds.features.Text(),
            "image": tfds.features.Image(),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
    )
    raw = {"image": tfds.decode.SkipDecoding()}
    found = features.deserialize_example_np(serialize(EXAMPLE), decoders=raw)
    assert (found["file_name"], found["image"], found["label"]) == EXAMPLE


def test_what_tfds_writes_is_read(tmp_path):
    features = tfds.features.FeaturesDict(
        {"picture": tfds.features.Image(), "kind": tfds.features.ClassLabel(num_classes=9)}
    )
    file = tmp_path / "a.png"
    file.write_bytes(b"an encoded image")
    record = features.serialize_example(
        features.encode_example({"picture": str(file), "kind": 4})
    )
    assert parse(record, "picture", "kind") == (b"", b"an encoded image", 4)


@pytest.mark.parametrize("label", [0, -1, 2**40])
def test_a_record_survives_the_round_trip_in_the_same_bytes(label):
    example = EXAMPLE._replace(label=label)
    assert parse(serialize(example)) == example
    assert serialize(parse(serialize(example))) == serialize(example)


@pytest.mark.parametrize(
    "record", [b"\xff\xff", b"not a record at all", serialize(EXAMPLE)[:-5]]
)
def test_what_is_no_record_is_refused(record):
    with pytest.raises(ValueError, match=r"no tf\.train\.Example|one of each is needed"):
        parse(record)


def test_a_record_without_one_image_and_one_label_is_refused():
    with pytest.raises(ValueError, match="0 encoded picture and 1 label"):
        parse(serialize(EXAMPLE), "picture")
    with pytest.raises(ValueError, match="1 encoded image and 0 file_name"):
        parse(serialize(EXAMPLE), "image", "file_name")


def test_digests_are_of_the_image_and_of_all_with_no_two_alike():
    image, whole = EXAMPLE.digests()
    assert image == hashlib.sha256(EXAMPLE.image).digest()
    length = np.uint64(len(EXAMPLE.name)).tobytes()
    assert whole == hashlib.sha256(image + length + EXAMPLE.name + b"7").digest()
    others = [
        EXAMPLE._replace(label=77),
        EXAMPLE._replace(name=EXAMPLE.name + b"7", label=7),
        EXAMPLE._replace(image=b""),
    ]
    assert len({whole, *(e.digests()[1] for e in others)}) == 4
