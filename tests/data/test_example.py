"""Records as TFDS's own serialiser and hashlib see them."""

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
    ("record", "keys", "said"),
    [
        (b"\xff\xff", (), "no tf.train.Example"),
        (serialize(EXAMPLE)[:-5], (), "no tf.train.Example"),
        (b"", (), "0 encoded image and 0 label"),
        (serialize(EXAMPLE), ("picture",), "0 encoded picture and 1 label"),
        (serialize(EXAMPLE), ("image", "file_name"), "1 encoded image and 0 file_name"),
    ],
)
def test_what_is_no_record_of_one_image_and_one_label_is_refused(record, keys, said):
    with pytest.raises(ValueError, match=said):
        parse(record, *keys)
