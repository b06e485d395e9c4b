"""Datasets on disk -> random access to encoded records.

Any TFDS dataset in ArrayRecord is read, without TensorFlow and without the code that
made it: what it holds is read from its folder.
"""

import contextlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxcls import records
from jaxcls.datasets import BUNDLED
from jaxcls.errors import InputError, did_you_mean

Record = tuple[bytes, int]

# What `prepare` writes beside the shards.
MANIFEST, LABELS = "manifest.json", "labels-{}.npy"


class Facts(NamedTuple):
    """What a dataset holds. `image_shape`: (H, W, C), None where images differ.

    fingerprint: of its content, from the manifest that `prepare` writes; else "".
    """

    name: str
    version: str
    image_shape: tuple[int | None, int | None, int]
    num_classes: int
    class_names: tuple[str, ...]
    splits: dict[str, int]
    fingerprint: str = ""


class Published(NamedTuple):
    """Counts that a dataset's authors state, for --dry_run; checked against the data."""

    image_shape: tuple[int | None, int | None, int]
    num_classes: int
    splits: dict[str, int]


PUBLISHED = {
    "digits": Published((8, 8, 1), 10, {"train": 1437, "test": 360}),
    "mnist": Published((28, 28, 1), 10, {"train": 60_000, "test": 10_000}),
    "fashion_mnist": Published((28, 28, 1), 10, {"train": 60_000, "test": 10_000}),
    "cifar10": Published((32, 32, 3), 10, {"train": 50_000, "test": 10_000}),
    "cifar100": Published((32, 32, 3), 100, {"train": 50_000, "test": 10_000}),
    "imagenet2012": Published(
        (None, None, 3), 1000, {"train": 1_281_167, "validation": 50_000}
    ),
}


# Where the original files of a dataset are; `prepare` reads them as they come.
_GET = "into a FOLDER and run"
ORIGINALS = {
    "imagenet2012": "download ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and"
    f" ILSVRC2012_devkit_t12.tar.gz from https://image-net.org {_GET}",
    "cifar10": "download cifar-10-python.tar.gz from"
    f" https://www.cs.toronto.edu/~kriz/cifar.html {_GET}",
    "cifar100": "download cifar-100-python.tar.gz from"
    f" https://www.cs.toronto.edu/~kriz/cifar.html {_GET}",
    "mnist": f"download MNIST's four idx files {_GET}",
    "fashion_mnist": "download the four idx files from"
    f" https://github.com/zalandoresearch/fashion-mnist {_GET}",
}


def published_facts(name: str) -> Facts | None:
    """What is known of a dataset that is not here, or None."""
    known = PUBLISHED.get(name.partition(":")[0])
    if known is None:
        return None
    return Facts(name, "", known.image_shape, known.num_classes, (), dict(known.splits))


class Dataset:
    """A prepared TFDS dataset: its `facts`, and `source` for a split.

    Raises `InputError` where it is absent (saying how to get it), incomplete, or not in
    ArrayRecord. A bundled dataset is prepared on first use.
    """

    def __init__(self, name: str, data_dir: str) -> None:
        import tensorflow_datasets as tfds

        _no_progress_bars()
        self.folder = folder = _folder(name, data_dir)
        self._builder = tfds.builder_from_directory(folder)
        info = self._builder.info
        if info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
            form = info.file_format.value if info.file_format else "an unknown format"
            raise InputError(
                f"data.name={name}: {folder} is in {form} and must be array_record; for a"
                f" copy in NEW_DIR: python -m jaxcls.prepare --source={folder}"
                f" --name={re.split('[:/]', name)[0]} --data_dir=NEW_DIR"
            )
        self._keys = info.supervised_keys or ("image", "label")
        fingerprint = manifest(folder).get("fingerprint", "")
        self.facts = _facts(name, info, self._keys, fingerprint)
        check_published(self.facts.name, self.facts.splits, "data.name")

    def source(self, split: str, key: str) -> "Source":
        """The records of a TFDS split such as ``train[:90%]``; `key` is its config key."""
        import tensorflow_datasets as tfds

        image_key, label_key = self._keys
        parts = []
        for name, start, stop in resolve(split, self.facts.splits, key):
            for path in self._builder.info.splits[name].filepaths:
                if not os.path.exists(path):
                    raise InputError(
                        f"{key}={split!r}: shard {path} is missing; copy it there or"
                        f" prepare {self.facts.name} again"
                    )
            decoders = {image_key: tfds.decode.SkipDecoding()}
            data = self._builder.as_data_source(name, decoders=decoders)
            parts.append((data, start, stop))
        return Source(parts, image_key, label_key, split)

    def labels(self, split: str, key: str) -> np.ndarray:
        """The labels [n] int32 of a split: as `prepare` wrote them, or read one by one."""
        found = []
        for name, start, stop in resolve(split, self.facts.splits, key):
            file = self.folder / LABELS.format(name)
            if not file.is_file():
                return _read_labels(self.source(split, key), split)
            labels = np.load(file, allow_pickle=False)
            if labels.shape != (self.facts.splits[name],):
                raise InputError(
                    f"{file} holds {labels.shape} labels for the {self.facts.splits[name]}"
                    f" examples of {name}; remove it, or prepare {self.facts.name} again"
                )
            found.append(labels[start:stop])
        return np.concatenate(found)


def _read_labels(source: "Source", split: str) -> np.ndarray:
    n = len(source)
    print(f"reading {split} once for its {n:,} labels; prepare writes them", flush=True)
    labels = np.empty(n, np.int32)
    for start in range(0, n, 1024):
        rows = np.arange(start, min(start + 1024, n))
        labels[rows] = [label for _, label in source.read(rows)]
    return labels


class Selected:
    """Some examples of a source, renumbered from 0."""

    def __init__(self, source: "Source", rows: np.ndarray) -> None:
        self._source, self._rows = source, rows

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, indices: np.ndarray) -> Iterable[Record]:
        """Like `Source.read`."""
        return self._source.read(self._rows[indices])

    def where(self, index: int) -> str:
        """Like `Source.where`."""
        return self._source.where(int(self._rows[index]))


class Source:
    """Random access to the records of a split; reading is safe from many threads."""

    def __init__(
        self,
        parts: Sequence[tuple[Any, int, int]],
        image_key: str,
        label_key: str,
        split: str,
    ) -> None:
        self._parts, self._split = parts, split
        self._starts = np.cumsum([0, *(stop - start for _, start, stop in parts)])
        self._keys = image_key, label_key

    def __len__(self) -> int:
        return int(self._starts[-1])

    def where(self, index: int) -> str:
        """What an example is called in messages."""
        return f"record {index} of split {self._split!r}"

    def read(self, indices: np.ndarray) -> Iterator[Record]:
        """indices [N] int64 in 0..len-1 -> N times (encoded image, label).

        One by one as they are asked for: a record is used while it is in the cache, and
        TFDS's own list of them costs threads for every shard it touches.
        """
        which = np.searchsorted(self._starts, indices, side="right") - 1
        for part, index in zip(which.tolist(), indices.tolist(), strict=True):
            data, start, _ = self._parts[part]
            row = index - int(self._starts[part]) + start
            try:
                yield records.parse(data.data_source[row], *self._keys)[1:]
            except ValueError:  # Of a form that only TFDS knows.
                example = data[row]
                image_key, label_key = self._keys
                yield example[image_key], int(example[label_key])


def resolve(split: str, splits: dict[str, int], key: str) -> list[tuple[str, int, int]]:
    """``"train[:90%]"`` -> ``[("train", 0, 1293)]``, by TFDS's own rules.

    Raises `InputError`, naming `key`, for an unknown split, a slice outside it, or an
    empty one.
    """
    import tensorflow_datasets as tfds

    infos = {
        name: tfds.core.SplitInfo(name=name, shard_lengths=[n], num_bytes=0)
        for name, n in splits.items()
    }
    try:
        if re.search(r"\dshard", split):
            raise ValueError("shards are not counted here")
        ranges = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
        parts = [
            (r.splitname, *slice(r.from_, r.to).indices(splits[r.splitname])[:2])
            for r in ranges
        ]
    except (ValueError, AssertionError):
        base = re.split(r"[\[+]", split)[0]
        near = "" if base in splits else did_you_mean(base, splits)
        counts = ", ".join(f"{name} (n={n})" for name, n in splits.items())
        raise InputError(
            f"{key}={split!r} is not a split{near}; there are {counts}, and slices such"
            f" as '{next(iter(splits), 'train')}[:90%]'"
        ) from None
    if any(stop <= start for _, start, stop in parts):
        raise InputError(f"{key}={split!r} holds no example; try '{parts[0][0]}'")
    return parts


def count(split: str, splits: dict[str, int], key: str) -> int:
    """How many examples a split holds; raises like `resolve`."""
    return sum(stop - start for _, start, stop in resolve(split, splits, key))


def data_root(data_dir: str, key: str = "data.dir") -> pathlib.Path:
    """The folder of datasets: `data_dir`, TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    if "://" in data_dir:
        raise InputError(
            f"{key}={data_dir} is a URL, and must be a folder: random access needs a"
            " file system; mount the bucket and give its mount point"
        )
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    try:
        return pathlib.Path(chosen).expanduser().resolve()
    except (OSError, RuntimeError) as error:
        raise InputError(f"{key}={chosen} is no path ({error}); try ~/data") from None


def _folder(name: str, data_dir: str) -> pathlib.Path:
    """The folder of the newest (or the named) version of a prepared dataset."""
    root = data_root(data_dir)
    base, _, version = name.partition(":")
    if not re.fullmatch(r"[A-Za-z0-9_.+-]+(/[A-Za-z0-9_.+-]+)?", base) or ".." in base:
        raise InputError(
            f"data.name={name!r} is not 'name[/config][:1.2.3]'; try 'cifar10'"
        )
    found = _versions(root / base)
    if not found and base in BUNDLED:
        _prepare(base, root)
        found = _versions(root / base)
    if not found:
        raise InputError(_absent(name, base, root))
    if version and version not in found:
        raise InputError(f"data.name={name!r}: {root / base} holds {', '.join(found)}")
    newest = max(found, key=lambda v: [int(part) for part in v.split(".")])
    return root / base / (version or newest)


def _versions(folder: pathlib.Path) -> list[str]:
    """The prepared versions below a dataset's folder."""
    if not folder.is_dir():
        return []
    return sorted(
        entry.name
        for entry in folder.iterdir()
        if re.fullmatch(r"\d+\.\d+\.\d+", entry.name)
        and (entry / "dataset_info.json").is_file()
    )


def _absent(name: str, base: str, root: pathlib.Path) -> str:
    """How to get a dataset that is not there."""
    configs = []
    if (root / base).is_dir():
        configs = [f"{base}/{e.name}" for e in (root / base).iterdir() if _versions(e)]
    if configs:
        return (
            f"data.name={name!r} has several configs; one of: {', '.join(sorted(configs))}"
        )
    here = []
    if root.is_dir():
        here = sorted(e.name for e in root.iterdir() if _versions(e))
    near = "" if base in PUBLISHED else did_you_mean(base, {*here, *PUBLISHED})
    how = ORIGINALS.get(base, "give a folder or an archive of images to")
    source = "FOLDER" if base in ORIGINALS else "FOLDER_OR_ARCHIVE"
    command = f"python -m jaxcls.prepare --source={source} --name={base}"
    tfds = f" (or --tfds={base}, where TensorFlow is installed)"
    return (
        f"data.name={name!r} is not prepared in {root}{near}; {how} {command}"
        f" --data_dir={root}{tfds}; prepared there: {', '.join(here) or 'nothing'}"
    )


def _prepare(base: str, root: pathlib.Path) -> None:
    """Write a bundled dataset; two processes may do so at once."""
    print(f"preparing {base} in {root} ...", flush=True)
    try:
        builder = BUNDLED[base](data_dir=str(root), file_format="array_record")
        with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
            builder.download_and_prepare()
    except OSError as error:
        if _versions(root / base):  # Another process finished first.
            return
        raise InputError(
            f"data.dir={root}: {base} cannot be written there ({error.strerror or error});"
            " give a folder you may write to: --config.data.dir=DIR"
        ) from None


def _facts(name: str, info: Any, keys: tuple[str, str], fingerprint: str) -> Facts:
    image_key, label_key = keys
    missing = [k for k in keys if k not in info.features]
    if missing or not hasattr(info.features[label_key], "num_classes"):
        raise InputError(
            f"data.name={name!r} is not a classification dataset: its features are"
            f" {', '.join(info.features)}, and an image and a class label are needed"
        )
    height, width, channels = info.features[image_key].shape
    label = info.features[label_key]
    names = label.names if label.num_classes else []
    return Facts(
        name.partition(":")[0],
        str(info.version),
        (height, width, channels or 3),
        label.num_classes,
        tuple(names),
        {split: part.num_examples for split, part in info.splits.items()},
        fingerprint,
    )


def check_published(name: str, splits: dict[str, int], key: str) -> None:
    """Raise `InputError` where a dataset lacks examples that its authors count.

    `key`: the config key or flag of `name`.
    """
    known = PUBLISHED.get(name)
    for split, n in known.splits.items() if known else ():
        if splits.get(split) != n:
            raise InputError(
                f"{key}={name!r}: split {split} holds {splits.get(split, 0)} examples, and"
                f" {n} were published; prepare it again, or under another name if it is"
                " another set"
            )


def manifest(folder: pathlib.Path) -> dict[str, Any]:
    """What `prepare` wrote about a dataset, or {} for one that it did not write."""
    file = folder / MANIFEST
    return json.loads(file.read_text()) if file.is_file() else {}


def _no_progress_bars() -> None:
    """TFDS draws tqdm bars; our console lines are logs.py's."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
