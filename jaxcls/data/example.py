"""A dataset's record: a tf.train.Example in TFDS's form."""

import hashlib
from typing import NamedTuple

from google.protobuf import message
from tensorflow_datasets.proto import tf_example_pb2

# The files that `prepare` writes beside the shards.
MANIFEST, LABELS = "manifest.json", "labels-{}.npy"


class Example(NamedTuple):
    """A record: the name of the original file, the encoded image and the label."""

    name: bytes
    image: bytes
    label: int

    def digest(self) -> bytes:
        """Returns a SHA-256 over that of the image, the name and the label.

        `writer.Contents` adds it to the fingerprint.
        """
        image = hashlib.sha256(self.image).digest()
        rest = len(self.name).to_bytes(8, "little") + self.name + b"%d" % self.label
        return hashlib.sha256(image + rest).digest()


def serialize(example: Example) -> bytes:
    """Serialises a record as a tf.train.Example, with its fields in one fixed order."""
    feature = {
        "file_name": {"bytes_list": {"value": [example.name]}},
        "image": {"bytes_list": {"value": [example.image]}},
        "label": {"int64_list": {"value": [example.label]}},
    }
    made = tf_example_pb2.Example(features={"feature": feature})
    return made.SerializeToString(deterministic=True)


def parse(record: bytes, image_key: str = "image", label_key: str = "label") -> Example:
    """Parses a record of `serialize`, or of another writer with other keys.

    Raises `ValueError` unless the record holds exactly one image and one label.
    """
    try:
        feature = tf_example_pb2.Example.FromString(record).features.feature
    except message.DecodeError:
        raise ValueError("no tf.train.Example") from None
    names = feature["file_name"].bytes_list.value if "file_name" in feature else ()
    images = feature[image_key].bytes_list.value
    labels = feature[label_key].int64_list.value
    if len(images) != 1 or len(labels) != 1:
        raise ValueError(
            f"{len(images)} encoded {image_key} and {len(labels)} {label_key} where one of"
            " each is needed"
        )
    return Example(names[0] if names else b"", images[0], labels[0])
