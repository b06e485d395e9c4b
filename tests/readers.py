"""The readers of foreign bytes, each with a small valid input, for `tests.fuzz`."""

import bz2
import contextlib
import functools
import gzip
import hashlib
import io
import json
import lzma
import pathlib
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib

import numpy as np
from PIL import Image

from jaxcls import experiment
from jaxcls.config import calls, durations, loading
from jaxcls.data import clean, decode, example, sources, splits, writer
from jaxcls.data.decode import Decode, DecodeError
from jaxcls.data.importers import open_source, tfrecords
from jaxcls.data.importers.cifar import CIFARS
from jaxcls.errors import InputError
from jaxcls.evaluation import attacks, corruptions
from jaxcls.experiment.tables import OURS
from jaxcls.models import weights
from jaxcls.predict import contact_sheet, gallery
from jaxcls.report import card, gather
from jaxcls.report import studies as of_studies
from jaxcls.runs import archive, checkpoint, provenance, records
from jaxcls.runs.workdir import Workdir
from jaxcls.studies import cells, expected, outcomes, reproducing, samples
from jaxcls.studies import table as study_table
from jaxcls.training import train
from tests import archives, torchbytes
from tests.fuzz import Reader
from tests.images import NOISE, encode

PIXELS = NOISE[:9, :14]
GOLDEN = pathlib.Path(__file__).parent / "golden"

# Images.

PICTURES = {
    "jpeg": [("JPEG", {}), ("JPEG", {"progressive": True}), ("JPEG", {"mode": "CMYK"})],
    "png": [("PNG", {}), ("PNG", {"mode": "P"}), ("PNG", {"mode": "I;16"})],
    "tiff": [("TIFF", {"compression": each}) for each in (None, "tiff_lzw", "jpeg")],
    "gif": [("GIF", {})],
    "webp": [("WEBP", {}), ("WEBP", {"lossless": True, "mode": "RGBA"})],
    "bmp": [("BMP", {}), ("BMP", {"mode": "P"}), ("DIB", {})],
    "ico": [("ICO", {}), ("ICO", {"bitmap_format": "bmp"})],
    "jpeg2000": [("JPEG2000", {}), ("JPEG2000", {"no_jp2": True})],
    "ppm": [("PPM", {}), ("PPM", {"mode": "L"}), ("PPM", {"mode": "1"})],
    "tga": [("TGA", {}), ("TGA", {"compression": "tga_rle"})],
    "others": [
        *(("PCX", {}), ("SGI", {}), ("IM", {}), ("DDS", {}), ("MSP", {"mode": "1"})),
        *(("XBM", {"mode": "1"}), ("AVIF", {}), ("QOI", {})),
    ],
}
EXIF = Image.Exif()
EXIF[0x0112] = 6


def picture(form, options):
    """The file of one picture, or None if Pillow does not write such a file."""
    mode = options.get("mode")
    image = Image.fromarray(PIXELS)
    if mode == "I;16":
        image = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257)
    elif mode:
        image = image.convert(mode)
    more = {k: v for k, v in options.items() if k != "mode"}
    if form in ("JPEG", "PNG"):
        more["exif"] = EXIF
    with contextlib.suppress(KeyError, OSError):
        return encode(image, form, **more)
    return None


def cleaned(folder):
    (file,) = folder.iterdir()
    with clean.quiet():
        clean.clean(file.read_bytes())


def decoded(folder):
    (file,) = folder.iterdir()
    with clean.quiet():
        clean.pixels(file.read_bytes(), Decode(3))


def sums_of_png(files):
    """Gives each chunk of a PNG its checksum, so that what is in it is read."""
    made = {}
    for name, data in files.items():
        out, at = bytearray(data), 8
        while data.startswith(b"\x89PNG") and at + 12 <= len(data):
            end = at + 8 + int.from_bytes(data[at : at + 4])
            if end + 4 > len(data):
                break
            out[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4)
            at = end + 4
        made[name] = bytes(out)
    return made


def images(kind):
    forms = enumerate(PICTURES[kind])
    found = {f"{n}.{form.lower()}": picture(form, options) for n, (form, options) in forms}
    files = {name: data for name, data in found.items() if data}
    pack = sums_of_png if kind == "png" else dict
    return Reader(files, (cleaned, decoded), pack, alone=True, refusals=(DecodeError,))


def sheet(_):
    out = io.BytesIO()
    Image.fromarray(PIXELS).save(out, "PNG")
    files = {"sheet.png": out.getvalue()}

    def read(folder):
        with contextlib.suppress(InputError):  # It is no sheet of ours.
            contact_sheet.check(folder / "sheet.png")

    return Reader(files, (read,), sums_of_png)


# Sources of `prepare`.

PNG = encode(PIXELS)
SOURCE = {
    "a/1.png": PNG,
    "a/2.png": encode(PIXELS[::-1]),
    "b/1.png": encode(PIXELS[:, ::-1]),
    "b/2.jpg": encode(PIXELS, "JPEG"),
}


def listed(name, folder):
    """Lists a source and reads what it lists; refused images are no fault."""
    scratch = pathlib.Path(tempfile.mkdtemp())
    try:
        found = open_source(folder / name, scratch, 0.0)
        for listing in found.splits.values():
            for row in range(min(len(listing.names), 20)):
                with contextlib.suppress(DecodeError, OSError):
                    listing.read(row)
    finally:
        shutil.rmtree(scratch)


def of_source(name, files, pack=dict, **more):
    return Reader(files, (functools.partial(listed, name),), pack, **more)


def tar_sums(data):
    """Gives each header of a tar its checksum."""
    out = bytearray(data)
    for at in range(0, len(out) - 511, 512):
        if out[at + 257 : at + 262] == b"ustar":
            total = sum(out[at : at + 512]) - sum(out[at + 148 : at + 156]) + 8 * 32
            out[at + 148 : at + 156] = b"%06o\0 " % (total % 8**6)
    return bytes(out)


TARS = {"tar": bytes, "tgz": functools.partial(gzip.compress, mtime=0)}
TARS |= {"bz2": bz2.compress, "xz": lzma.compress}


def tarred(kind):
    def pack(files):
        return {f"source.{kind}": TARS[kind](tar_sums(files["raw"]))}

    extra = [archives.member("a/3.png", 0, tarfile.LNKTYPE, "a/1.png")]
    made = archives.tar(SOURCE, form=tarfile.PAX_FORMAT)[:-1024] + archives.tar({}, extra)
    share = 1.0 if kind == "tar" else 0.2
    return of_source(f"source.{kind}", {"raw": made}, pack, share=share)


def zipped(_):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in SOURCE.items():
            archive.writestr(name, data)
    return of_source("source.zip", {"source.zip": out.getvalue()})


def tables(name):
    text = {
        "labels.csv": "path,label,split\na/1.png,cat,train\na/2.png,dog,train\n"
        "b/1.png,cat,val\nb/2.jpg,dog,val\n",
        "metadata.csv": "file_name,label\na/1.png,cat\na/2.png,dog\nb/1.png,cat\n",
        "metadata.jsonl": '{"file_name": "a/1.png", "label": "cat"}\n'
        '{"file_name": "a/2.png", "label": 7}\n{"file_name": "b/1.png", "label": "d"}\n',
    }[name]
    return of_source(".", {**SOURCE, name: text.encode()}, targets=(name,), share=0.5)


def pickles_of(_):
    from tests.data.importers import test_cifar as made

    names = {"label_names": [f"class{k}" for k in range(10)], "num_cases_per_batch": 2}
    rng = np.random.default_rng(0)
    batch = {
        "data": rng.integers(0, 256, (2, 3072), np.uint8),
        "labels": [3, 4],
        "filenames": ["a.png", "b.png"],
    }
    batches = {name: made.python2(batch) for name in CIFARS[0].splits["train"]}
    files = {**batches, "test_batch": pickled3(batch), "batches.meta": made.python2(names)}
    return of_source(".", files, targets=("data_batch_1", "test_batch", "batches.meta"))


def pickled3(value):
    import pickle

    return pickle.dumps(value, 2)


def idx_of(_):
    files = {}
    for stem in ("train", "t10k"):
        head = bytes((0, 0, 8, 3)) + struct.pack(">3I", 3, 5, 4)
        files[f"{stem}-images-idx3-ubyte"] = head + bytes(range(60))
        head = bytes((0, 0, 8, 1)) + struct.pack(">I", 3)
        files[f"{stem}-labels-idx1-ubyte"] = head + bytes((0, 1, 9))

    def pack(given):
        name = "t10k-images-idx3-ubyte"
        packed = dict(given)
        packed[f"{name}.gz"] = gzip.compress(packed.pop(name), mtime=0)
        return packed

    return of_source(".", files, pack)


def imagenet_of(_):
    from tests.data.importers import test_imagenet as made

    files = {
        "meta.mat": made.meta(),
        "truth.txt": made.lines(made.TRUTH),
        made.TRAIN: made.train_tar(),
        made.VAL: archives.tar(made.VALS),
    }

    def pack(given):
        left = dict(given)
        kit = made.devkit(left.pop("meta.mat"), left.pop("truth.txt"))
        return {name: tar_sums(data) for name, data in left.items()} | {made.DEVKIT: kit}

    return of_source(".", files, pack, share=0.03)


# Datasets.


@functools.cache
def dataset_files():
    """The files of a small dataset as `prepare` writes it."""
    with tempfile.TemporaryDirectory() as home:
        target = pathlib.Path(home) / "small" / writer.VERSION
        with writer.whole(target) as folder:
            contents = writer.Contents(folder, "small")
            for split in ("train", "test"):
                given = [example.Example(b"%d.png" % k, PNG, k % 2) for k in range(3)]

                def added(given=given):
                    for each in given:
                        contents.add(each.digest(), each.label)
                        yield example.serialize(each)

                contents.write_split(split, added())
            features = writer.features(("cat", "dog"), (9, 14, 3))
            contents.write_info("Made by a test.", features, ("image", "label"))
            contents.write_manifest("a test", ("cat", "dog"))
        return {
            file.relative_to(home).as_posix(): file.read_bytes()
            for file in target.iterdir()
        }


def sealed(files):
    """Gives a dataset's manifest the sums of its files, and its seal."""
    (name,) = (name for name in files if name.endswith("manifest.json"))
    try:
        content = json.loads(files[name])
        sums = content["files"]
        for other in [each for each in sums if isinstance(sums, dict)]:
            data = files.get(name.replace("manifest.json", other), b"")
            sums[other] = hashlib.sha256(data).hexdigest()
        content["seal"] = writer.seal_of(content)
        return {**files, name: json.dumps(content).encode()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return files


def dataset(_):
    files = dataset_files()

    def read(folder):
        found = sources.Dataset("small", str(folder))
        for split in [*found.facts.splits][:3]:
            found.labels(split, "data.train")
            source = found.source(split, "data.train")
            rows = np.arange(min(len(source), 5))
            list(source.read(rows))
            list(source.names(rows))

    return Reader(files, (read,), sealed, share=0.3)


def tfrecord(_):
    record = example.serialize(example.Example(b"a.png", PNG, 1))

    def pack(files):
        length = struct.pack("<Q", len(files["record"]))
        body = length + tfrecords.masked_crc(length)
        body += files["record"] + tfrecords.masked_crc(files["record"])
        return {"x.tfrecord": body * 2}

    def read(folder):
        for each in tfrecords.records(folder / "x.tfrecord"):
            with contextlib.suppress(ValueError):
                example.parse(each)

    return Reader({"record": record}, (read,), pack)


def real(_):
    # The rest of `examples.real_labels` needs ImageNet.
    files = {"dataset_info.json": b'{"fileFormat": "tfrecord", "splits": []}'}
    return Reader(files, (tfrecords.tfds_folder,))


# Weights.


def torch_zip(_):
    entries, stored = torchbytes.tensors(torchbytes.ARRAYS)
    content = torchbytes.pickled(torchbytes.ordered(entries))
    files = {"data.pkl": content, "byteorder": b"little"}
    files |= {f"data/{key}": values.tobytes() for key, values in stored.items()}

    def pack(given):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as made:
            for name, data in given.items():
                made.writestr(f"archive/{name}", data)
        return {"w.pth": out.getvalue()}

    return Reader(files, (weights_of("w.pth"),), pack, targets=("data.pkl",))


def torch_legacy(_):
    data = torchbytes.saved(torchbytes.ARRAYS, torchbytes.legacy)
    return Reader({"w.pth": data}, (weights_of("w.pth"),))


def npz_of(_):
    file = io.BytesIO()
    np.savez(file, a=np.ones((2, 3), np.float32), b=np.zeros(2, np.int64))
    compressed = io.BytesIO()
    np.savez_compressed(compressed, w=np.arange(6, dtype=np.float32))
    files = {"a.npz": file.getvalue(), "b.npz": compressed.getvalue()}
    return Reader(files, tuple(map(weights_of, files)))


def of_transformers(_):
    config = {"model_type": "resnet", "id2label": {"0": "cat", "1": "dog"}}
    config |= {"hidden_act": "relu", "downsample_in_bottleneck": False}
    preprocessor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "crop_pct": 0.875}
    preprocessor |= {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 224}
    preprocessor |= {"do_center_crop": True, "crop_size": {"height": 224, "width": 224}}
    preprocessor |= {"resample": 3, "rescale_factor": 1 / 255}
    files = {
        "config.json": json.dumps(config).encode(),
        "preprocessor_config.json": json.dumps(preprocessor).encode(),
        "w.pth": torchbytes.saved(torchbytes.ARRAYS, torchbytes.zipped),
    }

    def told_by(folder):
        weights.preprocessing(str(folder / "w.pth"), "init.weights")

    targets = ("config.json", "preprocessor_config.json")
    return Reader(files, (told_by,), targets=targets)


def weights_of(name):
    return lambda folder: weights.read(str(folder / name), "init.weights")


TIMM = {
    "architecture": "resnet50",
    "num_classes": 3,
    "label_names": ["cat", "dog", "cow"],
    "pretrained_cfg": {
        "input_size": [3, 224, 224],
        "crop_pct": 0.95,
        "crop_mode": "center",
        "interpolation": "bicubic",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    },
}


def safetensors_of(_):
    told = weights.Preprocessing((0.5,) * 3, (0.5,) * 3, 224, 0.875, "bicubic")
    tensors = {"a": np.ones((2, 3), np.float32), "b": np.zeros((0, 2), np.float32)}
    with tempfile.TemporaryDirectory() as home:
        file = pathlib.Path(home) / "w.safetensors"
        weights.write(file, tensors, told, ("cat", "dog"))
        data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    head, body = data[8 : 8 + length], data[8 + length :]
    about = json.loads(head)["__metadata__"]
    files = {"head": head, "body": body, "config.json": json.dumps(TIMM).encode()}
    files |= {f"jaxcls.{k}": about[f"jaxcls.{k}"].encode() for k in FACTS}

    def pack(given):
        head = given["head"]
        with contextlib.suppress(ValueError, RecursionError, TypeError, LookupError):
            parsed = json.loads(head)
            for key in FACTS:
                text = given[f"jaxcls.{key}"].decode("utf-8", "replace")
                parsed["__metadata__"][f"jaxcls.{key}"] = text
            head = json.dumps(parsed).encode()
        whole = len(head).to_bytes(8, "little") + head + given["body"]
        return {"w.safetensors": whole, "config.json": given["config.json"]}

    def told_by(folder):
        weights.preprocessing(str(folder / "w.safetensors"), "init.weights")

    return Reader(files, (weights_of("w.safetensors"), told_by), pack)


FACTS = ("preprocessing", "class_names")


# Runs.


@functools.cache
def run_files():
    """The files of a run on digits, of three steps, with a manifest of today."""
    files = {}
    with tarfile.open(GOLDEN / "run-0.1.0b.tar.gz") as packed:
        for member in packed:
            name = member.name.removeprefix("run/")
            is_read = "/" not in name or name.endswith("meta/metadata")
            if member.isfile() and is_read:
                files[name] = packed.extractfile(member).read()
    start = {
        "started": "2026-01-01T00:00:00+00:00",
        **provenance.of_this_start(),
        "devices": ["cpu"],
        "local_devices": 1,
        "hosts": 1,
        "resumed_from": None,
        "ended": "2026-01-01T00:00:09+00:00",
        "reason": "done",
        "records": {},
        "convolution": "eigen",
    }
    manifest = {"format": 1, "starts": [{**start, "resumed_from": 0}, start]}
    files["manifest.json"] = json.dumps(manifest).encode()
    timing = {"step": 2, "images_per_s": 1.5, "data_wait": 0.1, "train_s": 1.0}
    files["timing.jsonl"] = (json.dumps(timing) + "\n").encode()
    files["last_step.json"] = json.dumps({"step": 3, "split": "test", "n": 9}).encode()
    return files


def experiment_of(folder):
    """What a start does with a folder before it needs data: its config is checked."""
    workdir = Workdir(folder)
    config = workdir.config()
    config.compile.cache = ""
    exp = experiment.build(config, sources.facts_of(workdir.implied()))
    _ = exp.plan


def started(folder):
    workdir = Workdir(folder)
    exp = experiment.build(known_config())
    train._finished_before(exp, workdir)
    workdir.convolution()
    workdir.weights_of(exp.config)
    now = json.loads(run_files()["manifest.json"])["starts"][-1]
    for start in workdir.starts():
        if start.keys() >= {"resumed_from", "versions", "devices", "cpu"}:
            provenance.changes(start, now)


@functools.cache
def known_config():
    with tempfile.TemporaryDirectory() as home:
        folder = pathlib.Path(home)
        (folder / "config.json").write_bytes(run_files()["config.json"])
        return Workdir(folder).config()


def resealed(files):
    """Gives the "meta" of a checkpoint its seal."""
    made = dict(files)
    for name in files:
        if name.endswith("metadata"):
            with contextlib.suppress(Exception):  # It is no JSON object any more.
                meta = json.loads(files[name])
                meta.pop("seal", None)
                sealed = {**meta, "seal": checkpoint.seal_of(meta)}
                made[name] = json.dumps(sealed).encode()
    return made


def found(folder):
    workdir = Workdir(folder)
    for which in ("best", "last", "3"):
        checkpoint.find(workdir.checkpoints, which)
    with contextlib.suppress(checkpoint.CorruptError):
        meta = checkpoint.meta_of(workdir.checkpoints, 3)
        sealed, is_pending = meta.get("records", {}), bool(meta.get("pending"))
        train._check_records(workdir, sealed, 3, is_pending, "checkpoints/3")


def proof(folder):
    recorded = archive.read(str(folder), "RUN")
    reproducing._last_step(recorded, 0)


def record_files(folder):
    workdir = Workdir(folder)
    for path in (workdir.metrics, workdir.timing, workdir.digests):
        records.read(path)
    gather._records(workdir.timing, "step", "images_per_s", "data_wait")
    train.finished(workdir)
    outcomes.read(workdir, 0)
    outcomes.lacks_last_step(workdir)


def carded(folder):
    made = card.read(str(folder), {})
    card.as_markdown(made).encode()
    json.dumps(card.as_json(made))


def answers(_):
    text = "\n".join(f'{key} = "an answer"' for key in card.ASKED)

    def read(folder):
        card.read_answers(str(folder / "answers.toml"))

    return Reader({"answers.toml": text.encode()}, (read,))


def of_run(*targets, reads, **more):
    return lambda _: Reader(run_files(), reads, targets=targets, **more)


def packed_run(_):
    names = archive.PACKED
    files = {name: run_files()[name] for name in names}

    def pack(given):
        tar = archives.tar({f"run/{name}": data for name, data in given.items()})
        return {"run.tar.gz": gzip.compress(tar_sums(tar), mtime=0)}

    def read(folder):
        with archive.opened(str(folder / "run.tar.gz")) as place:
            proof(place)

    return Reader(files, (read,), pack, share=0.5)


def repacked(folder):
    archive.pack(str(folder), pathlib.Path(tempfile.gettempdir()) / "again.tar.gz")


# Studies.


@functools.cache
def study_files():
    """A study of two cells and two seeds, with the results that ours computes."""
    from jaxcls.studies import summary

    run = {k: v for k, v in run_files().items() if "/" not in k}
    two = [cells.Cell("base", {}, ()), cells.Cell("lr=1", {"optim.lr": "1"}, ())]
    done = {
        cell.name: [
            outcomes.Outcome(
                seed,
                "done",
                3,
                {"test_best": 9},
                {"test_best": {"top1": 0.5 + seed / 9 + i / 7, "loss": 0.3 + seed}},
            )
            for seed in (0, 1, 2)
        ]
        for i, cell in enumerate(two)
    }
    result = summary.summarise(
        two, done, metric="top1", baseline="base", best_metric="top1"
    )
    plan = {"format": 1, "config": {"seed": 0}, "seeds": [0, 1, 2]}
    plan["cells"] = [cell._asdict() for cell in two]
    from jaxcls import atomic

    files = {
        "study.json": json.dumps(atomic.finite(result)).encode(),
        "plan.json": json.dumps(plan).encode(),
        "expected.json": (loading._shipped() / "digits.expected.json").read_bytes(),
    }
    return files | {f"base/seed-0/{name}": data for name, data in run.items()}


def reported(folder):
    """What a report says of a study, without its charts."""
    study = gather.read_study(str(folder), "study")
    of_studies.plan(study.result)
    shades = of_studies.colours(study.result)
    study_table.titles(study.result)
    study_table.lines(study.result)
    of_studies.comparisons(study.result)
    of_studies.shares(study.result)
    values = [run["values"] for cell in study.result["cells"] for run in cell["runs"]]
    _ = shades, values, study_table.PLACES.get(study.result["headline"])
    for place in study_table.titles(study.result):
        for cell in study.result["cells"]:
            of_studies.row(cell, place, study.result["metric"])


def compared(folder):
    samples.read(str(folder / "base"))


def verified(folder):
    before = expected.read(folder / "expected.json")
    facts = sources.facts_of({"facts": before["data"]})
    then = before["figures"][before["place"]][before["metric"]]
    _ = facts, then["mean"] * 1.0, then["deviation"] * 1.0, then["n"] + 1
    _ = before["versions"]["jax"], before["devices"][0], before["margin"] + 1
    configs = loading.from_flat({**before["config"], "seed": 0})
    loading.flat(configs)


def of_study(*targets, reads):
    return lambda _: Reader(study_files(), reads, targets=targets)


# Texts.


def text(given, read):
    """A reader of texts, each an input by itself."""
    files = {str(number): each.encode() for number, each in enumerate(given)}

    def decoded(folder):
        (file,) = folder.iterdir()
        read(file.read_bytes().decode("utf-8", "surrogateescape"))

    return lambda _: Reader(files, (decoded,), alone=True)


PIPELINES = {
    "AUGMENTATIONS": ["random_crop(4) | flip | randaugment(2, 10)", "random_erasing(0.25)"],
    "MIXES": ["mixup(0.2) | cutmix(alpha=1.0)", "mixup"],
    "NORMALIZATIONS": ["mean_std((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))", "imagenet"],
    "HOST": ["decode(1) | resize_short(256, 'bicubic') | center_crop(224)"],
    "ATTACKS": ["fgsm(2) | pgd(2, steps=10)"],
    "VIEWS": ["flip | crops(5)"],
}


def one_pipeline(name):
    from jaxcls.evaluation.views import VIEWS

    host = {**decode.HOST_OPS, **decode.RANDOM_HOST_OPS}
    table = {**OURS, "HOST": host, "ATTACKS": attacks.ATTACKS, "VIEWS": VIEWS}[name]
    return text(PIPELINES[name], lambda each: calls.build(each, table, name.lower()))


OVERRIDES = [
    *("optim.lr=0.1", "batch_size=64", "length=90 epochs", "model.name=cnn(widths=(4,))"),
    *(
        "augment=flip | randaugment(2, 10)",
        "mix=mixup(0.2)",
        "optim.name=sgd(momentum=0.9)",
    ),
    *("optim.schedule=cosine", "loss.name=softmax", "eval.metrics=top1 | top5"),
    *("optim.decay_on=kernel$", "optim.decay_scales={'^stem/': 0.1}", "data.train=train"),
    *("data.train_ops=decode(1) | resize(8)", "normalize=mean_std((0.5,), (0.5,))"),
    *("ema.decay=0.9", "log.tensorboard=false", "seeds.init=3", "optim.freeze=^conv1"),
]


def overridden(text):
    key, _, value = text.partition("=")
    config = loading.from_flat(loading.flat(known_config()))
    loading.override(config, key, value)
    loading.check(config)
    loading.check_alone(config)
    facts = sources.published_facts("mnist")
    exp = experiment.build(config, facts)
    _ = exp.plan, exp.recipe


def lasting(text):
    durations.to_steps(text, "length", examples=999, batch_size=7, total=100)


KNOWN_SPLITS = {"train": 1437, "test": 360}
SPLITS = ["train", "train[:90%]", "train[10:20]+test[-5:]", "train[90%:]"]


def cells_of(text):
    cells.make([text], [], 0, 0, "all")


def drawn_of(text):
    cells.make([], [text], 2, 0, "all")


GRIDS = ["optim.lr=0.1,0.2", "augment=flip,randaugment(2, 10)"]
DRAWN = ["optim.lr=log(1e-4..0.1)", "optim.warmup_from=0..0.5", "batch_size=8,16"]


def features(_):
    out = io.BytesIO()
    np.savez(
        out,
        gallery=np.array([str(gallery.FORMAT), "key"]),
        path=np.array(["a.png", "b.png"], np.str_),
        status=np.array([[1, 2, 3], [4, 5, 6]], np.int64),
        embed=np.ones((2, 4), np.float32),
    )

    def read(folder):
        gallery._kept(folder / "gallery.npz", "key", lambda said: None)

    return Reader({"gallery.npz": out.getvalue()}, (read,))


READERS = {
    **{f"image-{kind}": functools.partial(images, kind) for kind in PICTURES},
    "sheet": functools.partial(sheet, ""),
    "zip": functools.partial(zipped, ""),
    **{kind: functools.partial(tarred, kind) for kind in TARS},
    **{
        name: functools.partial(tables, name)
        for name in ("labels.csv", "metadata.csv", "metadata.jsonl")
    },
    "cifar": functools.partial(pickles_of, ""),
    "idx": functools.partial(idx_of, ""),
    "imagenet": functools.partial(imagenet_of, ""),
    "dataset": functools.partial(dataset, ""),
    "tfrecord": functools.partial(tfrecord, ""),
    "tfds-folder": functools.partial(real, ""),
    "pth-zip": functools.partial(torch_zip, ""),
    "pth-legacy": functools.partial(torch_legacy, ""),
    "safetensors": functools.partial(safetensors_of, ""),
    "npz": functools.partial(npz_of, ""),
    "transformers": functools.partial(of_transformers, ""),
    "gallery": functools.partial(features, ""),
    "answers": functools.partial(answers, ""),
    "config.json": functools.partial(
        of_run("config.json", reads=(experiment_of, started, proof, carded), share=0.3),
        "",
    ),
    "manifest.json": functools.partial(
        of_run("manifest.json", reads=(started, proof, carded), share=0.3), ""
    ),
    "packing": functools.partial(
        of_run(
            "config.json", "manifest.json", "metrics.jsonl", reads=(repacked,), share=0.1
        ),
        "",
    ),
    "records": functools.partial(
        of_run(
            *("metrics.jsonl", "digests.jsonl", "timing.jsonl", "last_step.json"),
            reads=(record_files, started, proof, carded),
            share=0.3,
        ),
        "",
    ),
    "checkpoint-meta": functools.partial(
        of_run("checkpoints/3/meta/metadata", reads=(found,), pack=resealed), ""
    ),
    "packed-run": functools.partial(packed_run, ""),
    "study.json": functools.partial(
        of_study("study.json", "plan.json", reads=(reported, carded)), ""
    ),
    "plan.json": functools.partial(
        of_study("plan.json", "base/seed-0/metrics.jsonl", reads=(compared, reported)), ""
    ),
    "expected.json": functools.partial(of_study("expected.json", reads=(verified,)), ""),
    **{
        f"text-{name.lower()}": functools.partial(one_pipeline(name), "")
        for name in PIPELINES
    },
    "text-override": functools.partial(text(OVERRIDES, overridden), ""),
    "text-duration": functools.partial(text(["90 epochs", "1.5e6 examples"], lasting), ""),
    "text-split": functools.partial(
        text(SPLITS, lambda each: splits.resolve(each, KNOWN_SPLITS, "data.train")), ""
    ),
    "text-table": functools.partial(
        text(["{'bias$': 64}"], lambda each: calls.table(each, "key", example="{}")), ""
    ),
    "text-seeds": functools.partial(text(["10", "5-9", "3,8"], cells.seeds), ""),
    "text-grid": functools.partial(text(GRIDS, cells_of), ""),
    "text-random": functools.partial(text(DRAWN, drawn_of), ""),
    "text-corruptions": functools.partial(
        text(
            ["contrast, gaussian_noise"],
            lambda each: corruptions.named(each, "--corruptions"),
        ),
        "",
    ),
}
