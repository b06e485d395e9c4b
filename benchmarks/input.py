"""The host input pipeline against tf.data: ``python -m benchmarks.input``.

The same records (photographs as JPEG), random resized crops of 224 pixels, uint8 batches,
as many cores: this pipeline, and tf.data as Flax's ImageNet example writes it, which
decodes only the crop and resizes it bicubically. tf.data reads its records in order, from
a TFRecord; we read ours in random order, from ArrayRecord. Segments of all alternate in
one process, since machines are noisy; ratios are of medians. Without TensorFlow our side
alone is measured.
"""

import argparse
import concurrent.futures
import contextlib
import importlib
import importlib.util
import multiprocessing
import os
import pathlib
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import sklearn
import tensorflow_datasets as tfds

from benchmarks import measuring
from jaxcls.data import batches, decode, sources
from jaxcls.data.batch import Batch
from jaxcls.data.clean import Shrink, clean

SIZE = 224
SHORT = 256
# (batch size, batches) -> images/s, and images per second of processor time.
Segment = Callable[[int, int], tuple[float, float]]


class Photographs(tfds.core.GeneratorBasedBuilder):
    """`records` examples that repeat the given JPEG files; labels count up."""

    VERSION = tfds.core.Version("1.0.0")
    files: tuple[bytes, ...] = ()
    records = 0

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=1000),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Photographs.",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for i in range(self.records):
            yield f"{i:07d}", {"image": self.files[i % len(self.files)], "label": i % 1000}


class Repeated:
    """A source of `n` records that are those of another, again and again."""

    def __init__(self, source: sources.Source, n: int) -> None:
        self.source, self.n = source, n

    def __len__(self) -> int:
        return self.n

    def read(self, indices: np.ndarray) -> Iterator[tuple[bytes, int]]:
        return self.source.read(indices % len(self.source))

    def where(self, index: int) -> str:
        return self.source.where(index % len(self.source))


def photographs(place: str) -> list[bytes]:
    """The JPEG files of a tar, of a folder, or ("") of scikit-learn's own two."""
    suffixes = (".jpg", ".jpeg")
    if place and os.path.isfile(place):
        with tarfile.open(place) as tar:
            members = [m for m in tar if m.name.lower().endswith(suffixes)]
            return [file.read() for m in members if (file := tar.extractfile(m))]
    folder = pathlib.Path(
        place or pathlib.Path(sklearn.__file__).parent / "datasets/images"
    )
    files = sorted(p for p in folder.rglob("*") if p.name.lower().endswith(suffixes))
    if not files:
        sys.exit(f"--images={place} holds no JPEG; give a tar or a folder of them")
    return [path.read_bytes() for path in files]


def shrunk(jpeg: bytes) -> bytes:
    """The photograph as `prepare --shrink` writes it."""
    return clean(jpeg, Shrink(SHORT, 95)).data


def prepare(folder: pathlib.Path, files: list[bytes], records: int) -> sources.Source:
    """The files as a dataset in `folder`, and its source."""
    Photographs.files, Photographs.records = tuple(files), records
    tfds.disable_progress_bar()
    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
        builder = Photographs(data_dir=str(folder), file_format="array_record")
        builder.download_and_prepare()
    return opened(folder)


def opened(folder: pathlib.Path) -> sources.Source:
    return sources.Dataset("photographs", str(folder)).source("train", "data.train")


def host_batches(
    source: batches.Records, batch_size: int, start: int = 0, filter: str = "linear"
) -> Iterator[Batch]:
    """What a training run reads, on every core, without end."""
    crop = decode.random_resized_crop(SIZE, filter=filter)
    assert isinstance(crop, decode.RandomResizedCrop)
    ops: list[decode.Op] = [decode.decode(), crop]
    n, rows = len(source), slice(0, batch_size)
    plans = batches.train_plans(
        lambda epoch: batches.order(0, epoch, n),
        n,
        batch_size,
        rows,
        start=start,
        stop=10**9,
    )
    return batches.decoded(source, ops, plans, seed=0)


def ours(source: sources.Source, filter: str) -> Segment:
    return lambda batch_size, steps: rate(
        host_batches(source, batch_size, filter=filter), batch_size, steps
    )


def rate(made: Iterator[Any], batch_size: int, steps: int) -> tuple[float, float]:
    """A `Segment` of `steps` batches, after as many as may lie ready."""
    for _ in range(4):
        next(made)
    began, used = time.perf_counter(), time.process_time()
    for _ in range(steps):
        next(made)
    seconds, used = time.perf_counter() - began, time.process_time() - used
    if hasattr(made, "close"):
        made.close()
    return batch_size * steps / seconds, batch_size * steps / used


def tf_data(folder: pathlib.Path, files: list[bytes], records: int) -> Segment:
    """The same examples through tf.data; the TFRecord is written into `folder`."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    tf = importlib.import_module("tensorflow")
    path = str(folder / "photographs.tfrecord")
    with tf.io.TFRecordWriter(path) as writer:
        for i in range(records):
            image = tf.train.BytesList(value=[files[i % len(files)]])
            label = tf.train.Int64List(value=[i % 1000])
            feature = {
                "image": tf.train.Feature(bytes_list=image),
                "label": tf.train.Feature(int64_list=label),
            }
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(example.SerializeToString())

    def one(record: Any) -> tuple[Any, Any]:
        form = {
            "image": tf.io.FixedLenFeature([], tf.string),
            "label": tf.io.FixedLenFeature([], tf.int64),
        }
        example = tf.io.parse_single_example(record, form)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(example["image"]),
            tf.zeros([1, 0, 4]),
            min_object_covered=0.1,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        box = tf.concat([begin[:2], size[:2]], 0)
        crop = tf.io.decode_and_crop_jpeg(example["image"], box, channels=3)
        image = tf.image.resize([crop], [SIZE, SIZE], method="bicubic")[0]
        image = tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)
        return image, tf.cast(example["label"], tf.int32)

    def segment(batch_size: int, steps: int) -> tuple[float, float]:
        options = tf.data.Options()
        options.threading.private_threadpool_size = batches.cores()
        data = tf.data.TFRecordDataset(path).repeat()
        data = data.map(one, num_parallel_calls=tf.data.AUTOTUNE)
        data = data.batch(batch_size, drop_remainder=True).prefetch(2)
        return rate(iter(data.with_options(options)), batch_size, steps)

    return segment


def split(source: sources.Source, batch_size: int) -> dict[str, float]:
    """Median microseconds an image of every part of our work, on one thread."""
    read, crop = decode.Decode(3), decode.random_resized_crop(SIZE)
    assert isinstance(crop, decode.RandomResizedCrop)
    rngs = batches.example_rngs(0, 0, batch_size)
    order = batches.order(0, 0, len(source))
    filled = np.zeros((batch_size, SIZE, SIZE, 3), np.uint8)
    names = "read", "header and random box", "decode", "crop and resize", "into the batch"
    spent = []
    clock = time.perf_counter
    for row in range(batch_size):
        times = [clock()]
        image, _ = next(source.read(order[row : row + 1]))
        times.append(clock())
        frame = decode.frame_of(image)
        box = crop.box(*frame[1:], rngs[row]) if frame else (0, 0, SIZE, SIZE)
        times.append(clock())
        pixels = read.rows(image, frame, box[0] + box[2])
        times.append(clock())
        pixels = crop.cut(pixels, box)
        times.append(clock())
        filled[row] = pixels
        spent.append(np.diff([*times, clock()]))
    parts = dict(zip(names, np.median(spent, 0) * 1e6, strict=True))
    copies = []
    for _ in range(5):
        began = clock()
        jax.block_until_ready(jax.device_put(filled, may_alias=False))
        copies.append((clock() - began) / batch_size * 1e6)
    return {**parts, "copy to the device": statistics.median(copies)}


def memory(folder: str, batch_size: int, steps: int) -> tuple[float, list[float]]:
    """(seconds to the first batch of step 10**6 of ImageNet's size, peak MB as it runs).

    In a process of its own: TensorFlow's memory is not ours. The peaks are those after
    the quarters of `steps` batches.
    """
    repeated = Repeated(opened(pathlib.Path(folder)), 1_281_167)
    began = time.perf_counter()
    made = host_batches(repeated, batch_size, start=10**6)
    next(made)
    first = time.perf_counter() - began
    peaks = []
    for step in range(steps):
        next(made)
        if (step + 1) % max(1, steps // 4) == 0:
            peaks.append(measuring.peak_rss() / 1e6)
    return first, peaks


def report(rates: dict[str, list[tuple[float, float]]]) -> None:
    """The table of medians, their spread, and the ratio to tf.data on originals."""
    reference = rates.get("tf.data, originals, bicubic")
    for name, pairs in rates.items():
        (middle, core), walls = np.median(pairs, 0), [wall for wall, _ in pairs]
        line = (
            f"{name:32s} {middle:5.0f} images/s ({min(walls):.0f} to {max(walls):.0f}),"
            f" {core:.0f} per second of a core"
        )
        if reference:
            ratios = [a / b for (a, _), (b, _) in zip(pairs, reference, strict=True)]
            wall, cpu = np.array([middle, core]) / np.median(reference, 0)
            line += (
                f"; {wall:.2f} x tf.data on originals ({min(ratios):.2f} to"
                f" {max(ratios):.2f}), {cpu:.2f} x by processor time"
            )
        print(line)


def main() -> None:
    """Print memory, the split of our time, and the segments' medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", default="", help="a tar or a folder of JPEG files")
    parser.add_argument("--records", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=12, help="batches of a segment")
    parser.add_argument("--segments", type=int, default=5)
    args = parser.parse_args()
    files = photographs(args.images)
    small = [shrunk(file) for file in files]
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        whole = prepare(folder / "originals", files, args.records)
        little = prepare(folder / "small", small, args.records)
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as child:
            arguments = str(folder / "originals"), args.batch, 5 * args.steps
            first, peaks = child.submit(memory, *arguments).result()
        print(f"first batch at step 10**6 of 1,281,167 records: {first:.2f} s")
        print(f"peak memory in MB, by quarters: {', '.join(f'{p:.0f}' for p in peaks)}")
        for name, source in {"originals": whole, f"short side {SHORT}": little}.items():
            parts = split(source, args.batch)
            total = sum(parts.values())
            shares = (f"{k} {v:.0f} us ({v / total:.0%})" for k, v in parts.items())
            print(f"one thread, {name}: {', '.join(shares)}")
        sides = {
            "ours, originals, linear": ours(whole, "linear"),
            "ours, originals, cubic": ours(whole, "cubic"),
            f"ours, short side {SHORT}, linear": ours(little, "linear"),
        }
        if importlib.util.find_spec("tensorflow"):
            tf_side = tf_data(folder / "originals", files, args.records)
            sides["tf.data, originals, bicubic"] = tf_side
            tf_small = tf_data(folder / "small", small, args.records)
            sides[f"tf.data, short side {SHORT}, bicubic"] = tf_small
        else:
            print("TensorFlow is not installed: our side alone")
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for _ in range(args.segments):
            for name, segment in sides.items():
                rates[name].append(segment(args.batch, args.steps))
    sizes = f"{len(files)} photographs, mean {np.mean([*map(len, files)]) / 1000:.0f} kB"
    print(f"{batches.cores()} cores, batch {args.batch} x {SIZE}^2, {sizes}:")
    report(rates)


if __name__ == "__main__":
    main()
