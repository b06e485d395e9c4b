"""Weights come back from every kind of file and from a hub, with what is told of them."""

import contextlib
import hashlib
import http.server
import importlib
import io
import json
import os
import pathlib
import pickle
import re
import subprocess
import sys
import threading
import zipfile
from typing import ClassVar

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxcls.errors import InputError
from jaxcls.models import weights
from jaxcls.models.weights import Preprocessing
from tests.torchbytes import ARRAYS, legacy, saved, tensors, zipped

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent.parent
KEY = "init.weights"
RANDOM = np.random.default_rng(0)
TOLD = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.25, 0.3), 288, 0.95, "bicubic", "squash")
CONFIG = {
    "architecture": "resnet50",
    "num_classes": 2,
    "label_names": ["cat", "dög"],
    "pretrained_cfg": {
        "input_size": [3, 224, 224],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "crop_pct": 0.95,
        "interpolation": "bicubic",
        "test_input_size": [3, 288, 288],
        "test_crop_pct": 1.0,
    },
}
OF_CONFIG = Preprocessing(
    (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224, 0.95, "bicubic"
)


def check(found, arrays):
    """The arrays by the same names, floating ones as float32."""
    assert sorted(found) == sorted(arrays)
    for name, values in arrays.items():
        is_floating = values.dtype.name in ("float64", "float16", "bfloat16")
        expected = values.astype(np.float32) if is_floating else values
        np.testing.assert_array_equal(found[name], expected, name, strict=True)


def npz(arrays, save=np.savez):
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


DATA = {
    "safetensors": safetensors.numpy.save(ARRAYS),
    "legacy": saved(ARRAYS, legacy),
    "zip": saved(ARRAYS, zipped),
    "numpy": npz(ARRAYS),
    "packed": npz(ARRAYS, np.savez_compressed),
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.safetensors", "safetensors"),
        ("a.st", "safetensors"),
        *((f"a.{suffix}", "zip") for suffix in ("pth", "bin", "ckpt", "th", "pth.tar")),
        ("a.pt", "legacy"),
        ("a", "legacy"),
        ("a.npz", "numpy"),
        ("a.pth", "packed"),
    ],
)
def test_every_kind_of_file_comes_back_with_its_fingerprint(tmp_path, name, kind):
    data = DATA[kind]
    (tmp_path / name).write_bytes(data)
    found = weights.read(str(tmp_path / name), KEY)
    check(found.tensors, ARRAYS)
    assert (found.preprocessing, found.class_names) == (None, ())
    assert found.fingerprint == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert weights.preprocessing(str(tmp_path / name), KEY) is None


def test_an_entry_is_chosen_after_a_hash_and_is_part_of_the_fingerprint(tmp_path):
    entries, stored = tensors({"a": np.ones(2, np.float32), "b": np.zeros(2, np.float32)})
    content = {"model": {"w": entries["a"]}, "model_ema": {"w": entries["b"]}}
    data = zipped(content, stored)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    place = tmp_path / "a#b.pth"  # A name may have one too.
    place.write_bytes(data)
    found = weights.read(str(place), KEY)
    assert (found.tensors["w"].tolist(), found.fingerprint) == ([1, 1], digest)
    assert found.notes == (
        "of the file, 'model' is taken (a#b.pth#model_ema takes 'model_ema')",
    )
    found = weights.read(f"{place}#model_ema", KEY)
    assert (found.tensors["w"].tolist(), found.fingerprint) == (
        [0, 0],
        f"{digest}#model_ema",
    )
    assert weights.preprocessing(f"{place}#model_ema", KEY) is None
    (tmp_path / "a.safetensors").write_bytes(DATA["safetensors"])
    said = line(tmp_path / "a.safetensors#model")
    assert "names an entry of a file of torch, and the file is of safetensors" in said


# Floats in several forms, one of them not contiguous.
WRITTEN = {
    "b": RANDOM.normal(size=(2, 3, 1, 2)).astype(np.float32),
    "a": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "scalar": np.array(7, np.float32),
    "double": np.array([0.5, 2]),
    "empty": np.zeros((0, 3), np.float32),
}


def test_what_is_written_comes_back_and_the_library_reads_it(tmp_path):
    path = tmp_path / "new" / "deep" / "a.safetensors"
    weights.write(path, WRITTEN, TOLD, ("cat", "dög\n"))
    found = weights.read(str(path), KEY)
    check(found.tensors, WRITTEN)
    check(safetensors.numpy.load_file(path), WRITTEN)
    assert found.preprocessing == TOLD
    assert found.class_names == ("cat", "dög\n")
    assert weights.preprocessing(str(path), KEY) == TOLD
    assert os.listdir(path.parent) == ["a.safetensors"]


def test_the_same_input_is_the_same_bytes_and_aligned(tmp_path):
    backwards = dict(reversed(WRITTEN.items()))
    for name, arrays in (("a", WRITTEN), ("b", backwards)):
        weights.write(tmp_path / f"{name}.safetensors", arrays, TOLD, ["cat", "dog"])
    a, b = ((tmp_path / f"{name}.safetensors").read_bytes() for name in "ab")
    assert a == b
    assert int.from_bytes(a[:8], "little") % 8 == 0
    head = json.loads(a[8 : 8 + int.from_bytes(a[:8], "little")])
    assert list(head) == ["__metadata__", *sorted(WRITTEN)]
    names = ["format", "jaxcls.class_names", "jaxcls.preprocessing"]
    assert list(head["__metadata__"]) == names


def test_a_file_that_exists_is_not_replaced(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"mine")
    with pytest.raises(InputError, match=r"a\.safetensors exists, and is not replaced"):
        weights.write(path, WRITTEN, None, ())
    assert path.read_bytes() == b"mine"


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot be written \(No space left"):
        weights.write(tmp_path / "a.safetensors", WRITTEN, None, ())
    assert os.listdir(tmp_path) == []
    monkeypatch.undo()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot be written"):
        weights.write(tmp_path / "file" / "a.safetensors", WRITTEN, None, ())


def line(place):
    """The one line that refuses a place."""
    with pytest.raises(InputError) as caught:
        weights.read(str(place), KEY)
    message = str(caught.value)
    assert message.isprintable()
    return message


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("models", "is a folder, and must be a file of weights (.safetensors, .pth"),
        ("models", "or hf:ORG/NAME; in it: resnet.pth"),
        ("models/resnet.pt", "no such file (did you mean 'resnet.pth'?); give a file"),
        ("nowhere/resnet.pth", "no such file; give a file of weights"),
        ("models/notes.txt", "is of another kind than .safetensors, .pth, .npz and Keras"),
        ("https://example.org/resnet.pth", "no such file; give a file of weights (.safet"),
        ("x" * 300 + ".pth", "cannot be read (File name too long)"),
        ("hf:resnet50", "must be hf:ORG/NAME or hf:ORG/NAME@REVISION; try 'hf:"),
        ("hf:a/b/c", "must be hf:ORG/NAME"),
        ("hf:a/b@", "must be hf:ORG/NAME"),
        ("hf:a/b@/etc/passwd", "must be hf:ORG/NAME"),
        ("hf:a/b@../../x", "must be hf:ORG/NAME"),
        ("hf:a/b--c", "must be hf:ORG/NAME"),
    ],
)
def test_places_that_are_none_are_refused(tmp_path, monkeypatch, place, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "resnet.pth").write_bytes(b"")
    (tmp_path / "models" / "notes.txt").write_bytes(b"notes")
    message = line(place)
    assert message.startswith(f"{KEY}={place[:20]}")
    assert expected in message
    with pytest.raises(InputError):
        weights.preprocessing(place, KEY)


def test_only_a_hub_is_a_hub():
    assert weights.is_hub("hf:timm/resnet50.a1_in1k")
    assert weights.is_hub("hf:resnet50")  # To be refused as one.
    assert not weights.is_hub("hf.safetensors")


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    good = safetensors.numpy.save(ARRAYS)
    half = safetensors.numpy.save({"w": ARRAYS["half"]})
    for data, reason in (
        (b"", ""),
        (b"<html>404</html>", ""),
        (good[:-1], ""),
        (good + b"x", ""),
        (half.replace(b'"F16"', b'"F99"'), ""),
        (safetensors.numpy.save({}), "it holds no tensor"),
    ):
        path.write_bytes(data)
        message = line(path)
        assert message.startswith(f"{path} cannot be read as safetensors ({reason}")
        assert message.endswith("; download it again, or write it again")
    (tmp_path / "a.pth").write_bytes(b"")
    assert f"{KEY}={tmp_path / 'a.pth'} is empty; download it" in line(tmp_path / "a.pth")
    (tmp_path / "a.pth").write_bytes(DATA["legacy"][:-1])
    assert "cannot be read as tensors of torch (buffer is sm" in line(tmp_path / "a.pth")
    (tmp_path / "a.npz").write_bytes(npz({"a": np.array([None])}))
    assert "an array is of object, and must be of numbers" in line(tmp_path / "a.npz")
    big = {"a": np.zeros(10**6, np.float32)}
    (tmp_path / "a.npz").write_bytes(npz(big, np.savez_compressed))
    assert "as .npz (it unpacks to 4,000," in line(tmp_path / "a.npz")


def archive(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name in names:
            made.writestr(name, b"")
    return file.getvalue()


SCRIPT = archive("a/data.pkl", "a/code/__torch__.py", "a/constants.pkl")
TABLE = b"keys" + 0xDB4775248B80FB57.to_bytes(8, "little")


@pytest.mark.parametrize(
    ("name", "data", "what", "remedy"),
    [
        (
            "a.pt",
            SCRIPT,
            "a TorchScript archive",
            "torch.save(torch.jit.load('a.pt').state",
        ),
        (
            "a.pt2",
            archive("a/archive_format", "a/models/model.json"),
            "a program of torch.export",
            "torch.save(torch.export.load('a.pt2').state_dict, 'weights.pth')",
        ),
        ("a.zip", archive("b/c.txt"), "a zip archive of other files (b/c.txt)", "give the"),
        (
            "a.onnx",
            b"\x08\x0a\x12\x07pytorch",
            "an ONNX model",
            "onnx.load('a.onnx').graph",
        ),
        ("a.bin", b"\x08\x0a\x12\x07pytorch", "an ONNX model", "safetensors.numpy.save_"),
        ("a.tflite", b"\x1c\0\0\0TFL3", "a TensorFlow Lite model", "give the weights as"),
        ("a.ckpt", TABLE, "a part of a TensorFlow checkpoint", "give the weights as .pth"),
        (
            "model.ckpt.data-00000-of-00001",
            b"any",
            "a part of a TensorFlow checkpoint",
            "give the weights as .pth",
        ),
        (
            "flax_model.msgpack",
            b"\x81\xa6params",
            "Flax's msgpack",
            "numpy.savez('weights.npz', **flax.traverse_util.flatten_dict(flax.serializat",
        ),
        ("a.npy", b"\x93NUMPY\1\0", "a single NumPy array", "give the weights"),
        ("a.tar", b"\0" * 257 + b"ustar", "a tar archive", "unpack it"),
        ("a.gz", b"\x1f\x8b\x08", "a gzip file", "unpack it"),
        (
            "a.pth",
            b"version https://git-lfs.github.com/spec/v1",
            "a pointer",
            "git lfs pull",
        ),
        ("a.pth", b"<!DOCTYPE html><html>404", "a web page", "download the file itself"),
        (
            "a.pkl",
            pickle.dumps({"a.weight": [1.0] * 9, "b.weight": [2.0] * 9}),
            "a plain pickle, of which nothing is run",
            "safetensors.numpy.save_file(pickle.loads(pathlib.Path('a.pkl').read_bytes()),",
        ),
    ],
)
def test_another_kind_of_file_is_named_with_what_makes_weights_of_it(
    tmp_path, name, data, what, remedy
):
    (tmp_path / name).write_bytes(data)
    message = line(tmp_path / name)
    assert message.startswith(f"{KEY}={tmp_path / name} is {what}")
    assert remedy in message.removeprefix(f"{KEY}={tmp_path / name} is {what}")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_lines_of_python_make_what_is_read(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    flax_serialization = pytest.importorskip("flax.serialization")
    model = torch.nn.Sequential(torch.nn.Linear(3, 2)).eval()
    expected = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    monkeypatch.chdir(tmp_path)
    torch.jit.script(model).save("a.pt")
    torch.export.save(torch.export.export(model, (torch.zeros(1, 3),)), "a.pt2")
    torch.save(model, "a.pth")
    torch.save({"net": model, "epoch": 3}, "b.pth")
    pathlib.Path("a.pkl").write_bytes(pickle.dumps(expected))
    tree = {"0": {key[2:]: values for key, values in expected.items()}}
    pathlib.Path("a.msgpack").write_bytes(flax_serialization.msgpack_serialize(tree))
    names = ["a.pt", "a.pt2", "a.pth", "b.pth", "a.pkl", "a.msgpack"]
    if onnx := importlib.util.find_spec("onnx") and importlib.import_module("onnx"):
        tensors = [onnx.numpy_helper.from_array(v, k) for k, v in expected.items()]
        graph = onnx.helper.make_graph([], "g", [], [], tensors)
        onnx.save(onnx.helper.make_model(graph), "a.onnx")
        names.append("a.onnx")
    modules = {"torch": torch, "numpy": np, "safetensors": safetensors, "onnx": onnx}
    modules |= {"pickle": pickle, "pathlib": pathlib}
    modules |= {"flax": importlib.import_module("flax")}
    importlib.import_module("flax.traverse_util")
    for name in names:
        python = re.search(r"(in Python|where you trust it): (.*)", line(name))[2]
        exec(python, dict(modules))
        (made,) = pathlib.Path().glob("weights.*")
        found = weights.read(str(made), KEY).tensors
        check({key.replace("/", "."): values for key, values in found.items()}, expected)
        made.unlink()


def test_a_dtype_that_is_not_known_is_refused_by_name(tmp_path):
    path = tmp_path / "a.safetensors"
    narrow = np.zeros(2, ml_dtypes.float8_e4m3fn)
    path.write_bytes(safetensors.numpy.save({"w": narrow}))
    assert "w is of dtype F8_E4M3, and must be as F32 or BF16" in line(path)


def test_a_file_cut_or_changed_anywhere_is_read_or_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    weights.write(path, {"w": np.ones((2, 3), np.float32)}, TOLD, ("cat", "dog"))
    good = path.read_bytes()
    changed = [good[:length] for length in range(0, len(good), 3)]
    for position in range(len(good)):
        flipped = bytes([good[position] ^ (1 << RANDOM.integers(8))])
        changed.append(good[:position] + flipped + good[position + 1 :])
    read = 0
    for data in changed:
        path.write_bytes(data)
        for reading in (weights.read, weights.preprocessing):
            with contextlib.suppress(InputError):
                reading(str(path), KEY)
                read += 1
    assert 0 < read < len(changed)


@pytest.mark.parametrize(
    "metadata",
    [
        {"jaxcls.preprocessing": "{"},
        {"jaxcls.preprocessing": "3"},
        {"jaxcls.class_names": "[" * 10**5},
        {"jaxcls.preprocessing": '{"mean": [1]}'},
        {"jaxcls.preprocessing": json.dumps(TOLD._replace(std=(0, 1, 1))._asdict())},
        {"jaxcls.preprocessing": json.dumps(TOLD._replace(size="224")._asdict())},
        {"jaxcls.class_names": "[1, 2]"},
        {"jaxcls.class_names": "x"},
    ],
)
def test_damaged_metadata_of_ours_is_refused(tmp_path, metadata):
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors.numpy.save(ARRAYS, metadata))
    assert line(path).startswith(str(path))


def with_config(folder, config):
    """A place of weights with a config.json beside."""
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "config.json").write_text(text)
    (folder / "model.pth").write_bytes(saved({"w": np.ones(2, np.float32)}, zipped))
    return str(folder / "model.pth")


OLDER = {"architecture": "resnet50", **CONFIG["pretrained_cfg"], "labels": ["cat", "dög"]}


@pytest.mark.parametrize("config", [CONFIG, OLDER])
def test_a_config_of_timm_beside_a_file_is_read(tmp_path, config):
    place = with_config(tmp_path, config)
    found = weights.read(place, KEY)
    assert found.preprocessing == OF_CONFIG == weights.preprocessing(place, KEY)
    assert found.class_names == ("cat", "dög")


def test_metadata_of_ours_goes_before_a_config(tmp_path):
    with_config(tmp_path, CONFIG)
    weights.write(tmp_path / "a.safetensors", WRITTEN, TOLD, ("x", "y"))
    weights.write(tmp_path / "b.safetensors", WRITTEN, None, ())
    found = weights.read(str(tmp_path / "a.safetensors"), KEY)
    assert (found.preprocessing, found.class_names) == (TOLD, ("x", "y"))
    found = weights.read(str(tmp_path / "b.safetensors"), KEY)
    assert (found.preprocessing, found.class_names) == (OF_CONFIG, ("cat", "dög"))


@pytest.mark.parametrize(
    "config",
    [
        "no json",
        "[" * 100_000,
        [],
        {"architectures": ["ResNet"], "std": 0},
        {"architecture": "resnet50", "pretrained_cfg": {}},
    ],
)
def test_a_config_of_another_kind_is_not_used(tmp_path, config):
    found = weights.read(with_config(tmp_path, config), KEY)
    assert (found.preprocessing, found.class_names) == (None, ())


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("mean", None, (0.485, 0.456, 0.406)),
        ("std", None, (0.229, 0.224, 0.225)),
        ("input_size", None, 224),
        ("crop_pct", None, 0.875),
        ("crop_pct", 1, 1.0),
        ("interpolation", None, "bicubic"),
        ("interpolation", "random", "bilinear"),
        ("crop_mode", "border", "border"),
        ("crop_mode", None, "center"),
    ],
)
def test_what_is_not_told_is_what_timm_takes(tmp_path, name, value, expected):
    field = {"input_size": "size", "crop_pct": "crop"}.get(name, name)
    config = {**CONFIG, "pretrained_cfg": {**CONFIG["pretrained_cfg"], name: value}}
    found = weights.preprocessing(with_config(tmp_path, config), KEY)
    assert getattr(found, field) == expected


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("std", [0.2, 0, 0.2], "std is '[0.2, 0, 0.2]', and must be above 0"),
        ("std", [0.2, 0.2], "std is '[0.2, 0.2]', and must have 3 values"),
        ("std", "abc", "std is 'abc', and must be a list of finite numbers"),
        ("mean", [float("nan")] * 3, "must be a list of finite numbers"),
        ("mean", [10**400] * 3, "must be a list of finite numbers"),
        ("mean", [True] * 3, "must be a list of finite numbers"),
        ("mean", [], "must be a list of finite numbers"),
        ("input_size", [3, 224, 256], "must be [channels, height, width] of a square, as"),
        ("input_size", [3, 224], "must be [channels, height, width]"),
        ("input_size", [3, 0, 0], "must be [channels, height, width]"),
        ("input_size", 224, "must be [channels, height, width]"),
        ("input_size", [1, 224, 224], "mean is '[0.485, 0.456, 0.406]', and must have 1"),
        ("crop_pct", 0, "crop is '0', and must be in (0, 1]"),
        ("crop_pct", 1.5, "crop is '1.5', and must be in (0, 1]"),
        ("crop_pct", float("inf"), "must be in (0, 1]"),
        ("interpolation", "lanczos", "interpolation is 'lanczos', and must be one of bil"),
        ("interpolation", ["bicubic"], "must be one of bilinear"),
        ("crop_mode", "round", "crop_mode is 'round', and must be one of center"),
        ("label_names", {"0": "cat"}, "'0': 'cat'}\", and must be a list of names"),
    ],
)
def test_nonsense_in_a_config_is_refused(tmp_path, name, value, expected):
    message = line(with_config(tmp_path, {**OLDER, name: value}))
    assert message.startswith(f"{tmp_path / 'config.json'}: ")
    assert expected in message


COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = safetensors.numpy.save({"w": np.arange(3, dtype=np.float32)})
TRANSFORMERS = {"model_type": "vit", "id2label": {"0": "cat", "1": "dog"}}
PREPROCESSOR = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 224}
HUB = {
    "org/vit": {
        "model.safetensors": MODEL,
        "config.json": json.dumps(TRANSFORMERS).encode(),
        "preprocessor_config.json": json.dumps(PREPROCESSOR).encode(),
    },
    "org/safe": {"model.safetensors": MODEL, "config.json": json.dumps(CONFIG).encode()},
    "org/torch": {"pytorch_model.bin": saved({"w": np.ones(2, np.float32)}, zipped)},
    "org/neither": {"config.json": json.dumps({"architectures": []}).encode()},
    "org/broken": {"model.safetensors": MODEL, "config.json": b"{"},
}
REFUSED = {
    "org/gated": (401, {"X-Error-Code": "GatedRepo"}),
    "org/none": (401, {"X-Error-Code": "RepoNotFound"}),
    "org/forbidden": (403, {}),
    "org/failing": (503, {}),
}


class Hub(http.server.BaseHTTPRequestHandler):
    """What a hub answers to huggingface_hub."""

    asked: ClassVar[list] = []

    def do_HEAD(self):
        status, headers, data = self.answer()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    do_GET = do_HEAD

    def answer(self):
        """Returns (status, headers, body)."""
        if "/resolve/" not in self.path:  # The library asks for more than files.
            return 404, {}, b""
        Hub.asked.append(self.path)
        organisation, name, _, revision, file = self.path.strip("/").split("/", 4)
        repository = f"{organisation}/{name}"
        if repository in REFUSED:
            return *REFUSED[repository], b""
        if revision not in ("main", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        commit = {"X-Repo-Commit": COMMIT}
        data = HUB[repository].get(file)
        if data is None:
            return 404, {"X-Error-Code": "EntryNotFound", **commit}, b""
        return 200, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', **commit}, data

    def log_message(self, *arguments):
        pass


# Reads each place, prints what it finds or the one line that refuses it.
READER = """
import json, sys
from jaxcls import errors
from jaxcls.models import weights
for name in sys.argv[1:]:
    function, _, place = name.partition("=")
    try:
        found = getattr(weights, function)(place, "init.weights")
        if function == "read":
            found = [{k: v.tolist() for k, v in found.tensors.items()}, *found[1:]]
        print(json.dumps(found))
    except errors.InputError as error:
        print(json.dumps(str(error)))
"""


@pytest.fixture(scope="module")
def hub():
    """The address of a hub on this machine."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def read_in_a_process(home, *names, **environment):
    """What `READER` prints for each of `names`; it must be silent beside."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    kept |= {"HF_HOME": str(home), "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", READER, *names],
        capture_output=True,
        text=True,
        timeout=100,
        env={**kept, "no_proxy": "127.0.0.1", **environment},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(text) for text in done.stdout.splitlines()]


@pytest.mark.slow
def test_a_hub_gives_weights_once_and_then_from_its_cache(tmp_path, hub):
    safe = [
        {"w": [0.0, 1.0, 2.0]},
        json.loads(json.dumps(OF_CONFIG)),
        ["cat", "dög"],
        f"sha256:{hashlib.sha256(MODEL).hexdigest()}",
    ]
    safe += ["resnet50", []]
    torch = hashlib.sha256(HUB["org/torch"]["pytorch_model.bin"]).hexdigest()
    torch = [{"w": [1.0, 1.0]}, None, [], f"sha256:{torch}", None, []]
    Hub.asked.clear()
    told = read_in_a_process(tmp_path / "a", "preprocessing=hf:org/safe", HF_ENDPOINT=hub)
    assert told == [safe[1]]
    assert {path.rpartition("/")[2] for path in Hub.asked} == {"config.json"}
    places = ["read=hf:org/safe", f"read=hf:org/safe@{COMMIT}", "read=hf:org/torch"]
    places += ["preprocessing=hf:org/safe", "preprocessing=hf:org/torch"]
    half = [[0.5] * 3, [0.5] * 3, 224, 1.0, "bilinear", "squash"]
    vit = [safe[0], half, ["cat", "dog"], safe[3], "transformers_vit", []]
    places += ["read=hf:org/vit", "preprocessing=hf:org/vit"]
    expected = [safe, safe, torch, safe[1], None, vit, half]
    assert read_in_a_process(tmp_path / "a", *places, HF_ENDPOINT=hub) == expected
    Hub.asked.clear()
    offline = {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "1"}
    assert read_in_a_process(tmp_path / "a", *places, **offline) == expected
    assert Hub.asked == []
    # A server that is not there is no hindrance either to what was fetched.
    closed = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert read_in_a_process(tmp_path / "a", *places, **closed) == expected


@pytest.mark.slow
def test_a_hub_that_gives_nothing_is_one_line(tmp_path, hub):
    cases = {
        "org/none": "is no repository of the hub, or a private one",
        "org/gated": "is gated: accept its terms on its page, and set HF_TOKEN",
        "org/forbidden": "the hub forbids reading model.safetensors (status 403); set HF_T",
        "org/failing": "model.safetensors was not fetched before, and http://127.0.0.1",
        "org/safe@old": "has no revision 'old'; give a branch, tag or commit",
        "org/neither": "holds neither model.safetensors nor pytorch_model.bin",
        "org/broken": f"{COMMIT}/config.json cannot be read (Expecting property",
    }
    places = [f"read=hf:{name}" for name in cases]
    lines = read_in_a_process(tmp_path, *places, HF_ENDPOINT=hub)
    for (name, expected), message in zip(cases.items(), lines, strict=True):
        assert expected in message
        assert name == "org/broken" or message.startswith(f"init.weights=hf:{name}")
        assert message.isprintable()
    offline = read_in_a_process(tmp_path, "read=hf:org/new", HF_HUB_OFFLINE="1")
    assert (
        "model.safetensors was not fetched before, and HF_HUB_OFFLINE is set" in offline[0]
    )
    closed = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    (unreachable,) = read_in_a_process(tmp_path, "preprocessing=hf:org/new", **closed)
    assert "config.json was not fetched before, and http://127.0.0.1:9 does" in unreachable
    assert "check the network and HF_ENDPOINT, or give a local file" in unreachable


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize(
    "name",
    [
        "resnet50.a1_in1k",
        "vit_small_patch16_224.augreg_in21k_ft_in1k",
        "convnext_base.fb_in22k_ft_in1k_384",
        "deit_tiny_patch16_224",
        "vgg16",
    ],
)
@pytest.mark.usefixtures("torchvision")
def test_the_preprocessing_of_timm_is_ours(tmp_path, name):
    timm = pytest.importorskip("timm")
    config = timm.get_pretrained_cfg(name).to_dict()
    resolved = timm.data.resolve_data_config(pretrained_cfg=config)
    place = with_config(tmp_path, {"architecture": "any", "pretrained_cfg": config})
    assert weights.preprocessing(place, KEY) == Preprocessing(
        tuple(resolved["mean"]),
        tuple(resolved["std"]),
        resolved["input_size"][1],
        resolved["crop_pct"],
        resolved["interpolation"],
        resolved["crop_mode"],
    )
