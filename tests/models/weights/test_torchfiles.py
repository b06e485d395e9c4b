"""Files of torch come back as they were saved, and nothing in them can run."""

import argparse
import collections
import datetime
import os
import pathlib
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from jaxcls.errors import InputError
from jaxcls.models import weights
from jaxcls.models.weights import torchfiles
from tests.torchbytes import (
    ARRAYS,
    MAGIC,
    Built,
    Call,
    Named,
    Persistent,
    Raw,
    legacy,
    opcodes,
    ordered,
    pickled,
    saved,
    storage,
    tensors,
    view,
    zipped,
)

RANDOM = np.random.default_rng(0)
PARAMETER = Named("torch._utils", "_rebuild_parameter")
FORMATS = pytest.mark.parametrize("write", [zipped, legacy])


AGAIN = "download it again, or convert it to .safetensors"


def load(folder, data, name=""):
    path = folder / "model.pth"
    path.write_bytes(data)
    return torchfiles.load(path, name).tensors


def refused(folder, data, reason, remedy=AGAIN, name=""):
    """The one line that refuses `data`."""
    with pytest.raises(InputError, match=reason) as caught:
        load(folder, data, name)
    message = str(caught.value)
    assert message.startswith(
        f"{folder / 'model.pth'} cannot be read as tensors of torch ("
    )
    assert message.endswith(f"; {remedy}")
    assert message.isprintable()
    assert len(message) < 500
    return message


def check(found, expected):
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, name, strict=True)


@FORMATS
@pytest.mark.parametrize("name", ["", "model", "state_dict", "model_ema", "state_dict_ema"])
def test_every_dtype_comes_back_of_a_state_dict_and_of_a_checkpoint(tmp_path, write, name):
    def wrap(entries):
        return {"epoch": 3, "lr": 0.1, name: entries, "optimizer": {"state": {0: [None]}}}

    check(load(tmp_path, saved(ARRAYS, write, wrap if name else lambda x: x)), ARRAYS)


def test_the_model_goes_before_its_average(tmp_path):
    entries, stored = tensors({"a": np.ones(2, np.float32), "b": np.zeros(2, np.float32)})
    content = {"model_ema": {"w": entries["b"]}, "model": {"w": entries["a"]}}
    check(load(tmp_path, zipped(content, stored)), {"w": np.ones(2, np.float32)})


@pytest.mark.parametrize("name", ["model_state_dict", "net", "params", "network"])
def test_the_only_dict_of_tensors_is_taken_whatever_its_name(tmp_path, name):
    arrays = {"w": np.ones((2, 3), np.float32)}

    def wrap(entries):
        state = {"state": {0: {"momentum": [None]}}, "loss": {}, "epoch": 5}
        return {"optimizer_state_dict": state, name: entries, "loss": 0.5}

    path = tmp_path / "model.pth"
    path.write_bytes(saved(arrays, zipped, wrap))
    found = torchfiles.load(path)
    check(found.tensors, arrays)
    assert found.notes == (f"of the file, {name!r} is taken",)


@pytest.mark.parametrize(
    ("arch", "expected"),
    [("resnet50", "resnet50"), ("a\x1b[2J", "a\\x1b[2J"), (5, None), ("", None)],
)
def test_the_arch_of_a_training_checkpoint_is_the_architecture(tmp_path, arch, expected):
    """timm's train.py and PyTorch's ImageNet example write it beside "state_dict"."""
    arrays = {"w": np.ones((2, 3), np.float32)}
    path = tmp_path / "model_best.pth.tar"
    path.write_bytes(saved(arrays, zipped, lambda x: {"arch": arch, "state_dict": x}))
    assert weights.read(str(path), "x").architecture == expected
    path.write_bytes(saved(arrays, zipped, lambda x: {"state_dict": x}))
    assert weights.read(str(path), "x").architecture is None


def test_of_several_dicts_one_is_asked_for(tmp_path):
    entries, stored = tensors(
        {"a": np.ones((2, 2), np.float32), "b": np.zeros((2, 2), np.float32)}
    )
    student, teacher = {"w": entries["a"]}, {"w": entries["b"]}
    content = {"student": student, "teacher": teacher, "epoch": 3}
    data = zipped(content, stored)
    reason = "it holds tensors in 'student' and in 'teacher'"
    refused(tmp_path, data, reason, "say which, as model.pth#student")
    check(load(tmp_path, data, "teacher"), {"w": np.zeros((2, 2), np.float32)})
    reason = "it has no dict of tensors 'epoch'; those that it has: 'student', 'teacher'"
    remedy = "give one of these after a #, as model.pth#student"
    refused(tmp_path, data, reason, remedy, "epoch")


def test_tensors_beside_one_dict_of_tensors_are_asked_for(tmp_path):
    entries, stored = tensors(
        {"a": np.ones((2, 2), np.float32), "b": np.zeros((2, 2), np.float32)}
    )
    data = zipped({"w": entries["a"], "b": {"w": entries["b"]}}, stored)
    reason = "it holds tensors at its top and in 'b'"
    refused(tmp_path, data, reason, "say which, as model.pth#b")
    check(load(tmp_path, data, "b"), {"w": np.zeros((2, 2), np.float32)})


def test_a_few_numbers_beside_a_model_are_not_taken_for_one(tmp_path):
    arrays = {"w": np.ones((2, 2), np.float32), "scale": np.ones(1, np.float32)}
    entries, stored = tensors(arrays)
    content = {"criterion": {"scale": entries["scale"]}, "net": {"w": entries["w"]}}
    check(load(tmp_path, zipped(content, stored)), {"w": arrays["w"]})


@FORMATS
def test_views_of_a_shared_storage_come_back(tmp_path, write):
    values = np.arange(24, dtype=np.float32)
    of = storage("0", "float32", 24)
    content = ordered(
        {
            "whole": view(of, 0, (2, 3, 4), (12, 4, 1)),
            "transposed": view(of, 0, (4, 3, 2), (1, 4, 12)),
            "part": view(of, 13, (2, 2), (4, 1)),
            "steps": view(of, 1, (12,), (2,)),
            "same": view(of, 5, (1, 4), (0, 1)),
            "far": view(of, 23, (1, 1), (2**40, 2**61)),
            "none": view(of, 24, (0, 5), (5, 1)),
        }
    )
    whole = values.reshape(2, 3, 4)
    expected = {
        "whole": whole,
        "transposed": whole.transpose(2, 1, 0),
        "part": whole[1, 0:2, 1:3],
        "steps": values[1::2],
        "same": values[None, 5:9],
        "far": values[None, 23:],
        "none": np.zeros((0, 5), np.float32),
    }
    found = load(tmp_path, write(content, {"0": values}))
    check(found, expected)
    assert not any(array.flags.writeable for array in found.values() if array.size)


def test_what_python_2_pickled_and_parameters_and_plain_tensors_come_back(tmp_path):
    ones = np.ones(2, np.float32)
    entries, stored = tensors({"w": ones})
    size = Call(Named("torch", "Size"), ((2,),))
    plain = (storage("0", "float32", 2), 0, size, (1,))
    pairs = [
        [Raw(b"U\x01w"), entries["w"]],
        ["a", Call(PARAMETER, (entries["w"], True, ordered({})))],
        ["b", Call(Named("torch._utils", "_rebuild_tensor"), plain)],
    ]
    content = Call(Named("collections", "OrderedDict"), (pairs,))
    check(load(tmp_path, legacy(content, stored)), {"w": ones, "a": ones, "b": ones})


class Hostile:
    """What a pickle calls where an unpickler lets it."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(tmp_path, protocol):
    touched = tmp_path / "touched"
    system = Hostile(os.system, f"touch {touched}")
    python = Hostile(eval, f"open({str(touched)!r}, 'w')")
    for hostile in (system, python):
        code = pickle.dumps({"w": hostile}, protocol)
        before = pickled(MAGIC) + pickled(1001) + pickled({})
        refused(tmp_path, code, "does not begin as a file of torch does")
        for data in (before + code, zipped(Raw(code[:-1]), {})):
            reason = r"it holds no dict of tensors: 'w' \(\w+.(system|eval)\)"
            refused(tmp_path, data, reason)
        beside = pickle.dumps({"args": hostile, "more": {1: hostile}}, protocol)
        entries, stored = tensors({"w": np.ones(2, np.float32)})
        content = Raw(b"}(" + opcodes("model") + opcodes(entries) + opcodes("epoch"))
        content = Raw(content.opcodes + beside[2 * (protocol > 1) : -1] + b"u")
        for write in (zipped, legacy):
            check(load(tmp_path, write(content, stored)), {"w": np.ones(2, np.float32)})
        assert not touched.exists()


@pytest.mark.parametrize(
    "name",
    [
        "builtins getattr",
        "argparse Namespace",
        "torch._utils _rebuild_wrapper_subclass",
        "torch FloatStorage.from_file",
        "jaxcls.pickles load",
    ],
)
def test_any_other_name_makes_nothing_unless_a_tensor_needs_it(tmp_path, name):
    module, _, attribute = name.partition(" ")
    ones = {"w": np.ones(2, np.float32)}
    entries, stored = tensors(ones)
    other = Named(module, attribute)
    made = Built(Call(other, (entries["w"], 3)), {"lr": 0.1})
    content = {"model": entries, "args": other, "made": [made], "epoch": 3}
    needed = {"model": {**entries, "v": Call(other, (entries["w"],))}}
    for write in (zipped, legacy):
        check(load(tmp_path, write(content, stored)), ones)
        reason = f"entry 'v' is a {module}.{attribute}, no tensor"
        refused(tmp_path, write(needed, stored), reason)


FLOATS = storage("0", "float32", 6)
COMPLEX = Named("torch", "ComplexFloatStorage")
REBUILD = Named("torch._utils", "_rebuild_tensor_v2")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (view(FLOATS, 1, (6,), (1,)), "leaves its 6 elements"),
        (view(FLOATS, 0, (2, 2), (5, 1)), "size .2, 2. at 0 leaves its 6 elements"),
        (view(FLOATS, 0, (10**12,), (0,)), "leaves its 6 elements"),
        (view(FLOATS, 7, (0,), (1,)), "leaves its 6 elements"),
        (view(FLOATS, 0, (2**61, 2**61), (1, 1)), "leaves its 6 elements"),
        (view(FLOATS, -1, (2,), (1,)), "or negative"),
        (view(FLOATS, 5, (2,), (-1,)), "or negative"),
        (view(FLOATS, 0, (2**200,), (1,)), "no number, or negative"),
        (view(FLOATS, 0, (2.0,), (1,)), "no number"),
        (view(FLOATS, 0, (2,), (1, 1)), "1 sizes and 2 strides"),
        (view(FLOATS, 0, (1,) * 65, (1,) * 65), "65 sizes and 65 strides"),
        (view(FLOATS, 0, [2], [1]), "no storage, size or stride"),
        (view(3, 0, (2,), (1,)), "no storage, size or stride"),
        (view(FLOATS, 0, Call(Named("torch", "Size"), (5,)), (1,)), "no storage, size"),
        (Call(REBUILD, ()), "missing 4 required"),
        (Call(REBUILD, (FLOATS, 0, (6,), (1,), False, {}, {"conj": True})), "conjugate"),
        (Call(REBUILD, [FLOATS]), "it calls a global"),
        (Call(3, ()), "it calls a int"),
        (Call(Named("torch", "FloatStorage"), (10**12,)), "calls torch.FloatStorage"),
        (Call(PARAMETER, (1, 2, 3)), "'bad' is a int"),
        (Call(Named("collections", "OrderedDict"), (5,)), "not iterable"),
        (Raw(b"cbuiltins\neval\n"), "'bad' is a global, no tensor"),
        (Raw(b"cbuiltins\neval\n)R"), "'bad' is a builtins.eval, no tensor"),
        (Raw(b"cbuiltins\neval\n)\x81"), "'bad' is a builtins.eval, no tensor"),
        (Raw(b"(ibuiltins\neval\n"), "'bad' is a builtins.eval, no tensor"),
        (Raw(b"(cbuiltins\neval\nNo"), "'bad' is a builtins.eval, no tensor"),
        (Raw(b"K\x01)\x81"), "it calls a int"),
        (Raw(b"\x82\x01"), "opcode EXT1"),
        (Raw(b"(K\x01}b"), "gives state to a int"),
        (
            view(Persistent(("storage", COMPLEX, "1", "cpu", 6)), 0, (6,), (1,)),
            "'bad' is a torch.ComplexFloatStorage, no tensor",
        ),
        (Persistent("0"), "no storage's"),
        (Persistent(("storage", "FloatStorage", "0", "cpu", 6)), "no storage's"),
        (Persistent(("module", Named("torch", "Size"), "0", "cpu", 6)), "no storage's"),
        (storage("0", "float32", -6), "no storage's"),
        (storage("0", "float32", 6, ("1", 4, 2)), "no storage's"),
        (storage("0", "float32", 2**61), "two dtypes or sizes"),
        ([storage("0", "float32", 6), storage("0", "int32", 6)], "two dtypes or sizes"),
    ],
)
def test_hostile_arguments_are_refused(tmp_path, content, reason):
    good = view(FLOATS, 0, (6,), (1,))
    stored = {"0": np.zeros(6, np.float32)}
    for write in (zipped, legacy):
        refused(tmp_path, write({"good": good, "bad": content}, stored), reason)


def test_tensors_that_share_beyond_measure_are_refused(tmp_path):
    values = np.zeros(10_000, np.float32)
    of = storage("0", "float32", 10_000)
    content = {f"t{k}": view(of, 0, (10_000,), (1,)) for k in range(50)}
    refused(tmp_path, zipped(content, {"0": values}), "its tensors 2000000")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({}, "it is empty"),
        ({"epoch": 3, "model": {}}, "'epoch' .int., 'model' .dict."),
        ([1, 2], "it holds a list, and must hold a dict"),
        (None, "it holds a nonetype"),
        (
            {"w": view(FLOATS, 0, (6,), (1,)), "extra": 3},
            "entry 'extra' is a int, no tensor",
        ),
        ({3: view(FLOATS, 0, (6,), (1,))}, "entry '3' is a tensor"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path, content, reason):
    stored = {"0": np.zeros(6, np.float32)} if "FloatStorage" in repr(content) else {}
    for write in (zipped, legacy):
        refused(tmp_path, write(content, stored), reason)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b"<html>404</html>", "opcode"),
        (pickled({"w": 1}), "does not begin as a file of torch does"),
        (b"PK\3\4" + bytes(100), "not a zip"),
        (legacy({}, {}, protocol=1002), "does not begin as a file of torch does"),
    ],
)
def test_other_files_are_refused(tmp_path, data, reason):
    refused(tmp_path, data, reason)


def archive(folder, members, method=zipfile.ZIP_STORED):
    path = folder / "made.zip"
    with zipfile.ZipFile(path, "w", method) as made:
        for name, data in members.items():
            made.writestr(name, data)
    return path.read_bytes()


def test_archives_that_do_not_fit_are_refused(tmp_path):
    entries, stored = tensors({"w": np.ones(4, np.float32)})
    content = pickled(entries)
    members = {"a/data.pkl": content, "a/data/0": bytes(16)}
    check(load(tmp_path, archive(tmp_path, members)), {"w": np.zeros(4, np.float32)})
    for name, data in (("a/data.pkl", content), ("a/data/0", bytes(16))):
        (other,) = members.keys() - {name}
        refused(tmp_path, archive(tmp_path, {name: data}), f"no item named '{other}'")
    for length, found in ((0, 0), (12, 3), (100_000, 25_000)):
        changed = {**members, "a/data/0": bytes(length)}
        reason = f"a/data/0 has {found} elements, and must have 4"
        refused(tmp_path, archive(tmp_path, changed), reason)
    bomb = archive(tmp_path, members, zipfile.ZIP_DEFLATED)
    refused(tmp_path, bomb, "is compressed, as torch never does")
    big = zipped(entries, stored, order=b"big")
    refused(tmp_path, big, "its byteorder is b'big', and must be 'little'")
    flipped = zipped(entries, stored).replace(stored["0"].tobytes(), bytes(16))
    refused(tmp_path, flipped, "Bad CRC-32")


def test_legacy_storages_that_do_not_fit_are_refused(tmp_path):
    entries, stored = tensors({"w": np.ones(4, np.float32), "v": np.ones(2, np.float32)})
    for keys in (["0"], ["0", "1", "2"], [["0"]], "01"):
        refused(tmp_path, legacy(entries, stored, keys=keys), "is not that of its tensors")
    good = legacy(entries, stored)
    counts = struct.pack("<q", 4), struct.pack("<q", -4)
    refused(tmp_path, good.replace(*counts), "storage 0 has -4 elements, not 4")
    refused(tmp_path, good[:-1], "buffer is smaller than requested size")


@FORMATS
def test_a_file_cut_or_changed_anywhere_loads_or_is_refused(tmp_path, write):
    good = saved({"w": np.ones((2, 3), np.float32), "n": np.array(3, np.int64)}, write)
    changed = [good[:length] for length in range(len(good))]
    for position in range(len(good)):
        for mask in (0xFF, 1 << RANDOM.integers(8)):
            flipped = bytes([good[position] ^ mask])
            changed.append(good[:position] + flipped + good[position + 1 :])
    loaded, messages = 0, []
    for data in changed:
        try:
            found = load(tmp_path, data)
        except InputError as error:
            messages.append(str(error))
        else:
            loaded += 1
            assert all(isinstance(array, np.ndarray) for array in found.values())
    assert all(message.isprintable() for message in messages)
    assert 0 < loaded < len(changed) // 2


def saved_by_torch(torch):
    base = torch.arange(24.0).reshape(2, 3, 4)
    shared = torch.arange(10, dtype=torch.float64)
    return {
        "base": base,
        "transposed": base.permute(2, 0, 1),
        "part": base[1, :, 1:3],
        "view": shared[3:7],
        "steps": shared[::2],
        "zero_dimensions": torch.tensor(7),
        "bfloat16": torch.randn(3, 2).bfloat16(),
        "half": torch.randn(3).half(),
        "bool": torch.tensor([True, False]),
        "int8": torch.tensor([-1], dtype=torch.int8),
        "uint8": torch.tensor([200], dtype=torch.uint8),
        "int16": torch.tensor([-300], dtype=torch.int16),
        "int32": torch.tensor([-70_000], dtype=torch.int32),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }


@pytest.mark.slow
@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("is_nested", [False, True])
def test_what_torch_saves_comes_back(tmp_path, new, protocol, is_nested):
    torch = pytest.importorskip("torch")
    tensors_of_torch = saved_by_torch(torch)
    content = collections.OrderedDict(tensors_of_torch)
    if is_nested:
        state = {"state": {0: {"step": torch.tensor(3.0)}}, "groups": [{"betas": (0.9, 1)}]}
        content = {"epoch": 3, "model": content, "optimizer": state, "best": 0.75}
    path = tmp_path / "model.pth"
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": new}
    torch.save(content, path, **options)
    expected = {}
    for key, tensor in tensors_of_torch.items():
        is_brain = tensor.dtype == torch.bfloat16
        values = (tensor.float() if is_brain else tensor.detach()).numpy()
        expected[key] = values.astype(ml_dtypes.bfloat16) if is_brain else values
    check(torchfiles.load(path).tensors, expected)


@pytest.mark.slow
@pytest.mark.parametrize("new", [True, False])
def test_what_torch_saves_of_objects_is_refused(tmp_path, new):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pth"
    for content, reason in (
        ({"args": argparse.Namespace(a=1)}, "'args' .argparse.Namespace."),
        (
            torch.nn.Linear(2, 2),
            "a whole torch.nn.modules.linear.Linear, of which nothing is run.; where you"
            " trust it: torch.save.torch.load.'model.pth', weights_only=False..state_dict",
        ),
        (
            {"epoch": 3, "model": torch.nn.Linear(2, 2)},
            r"'model' .torch.nn.modules.linear.Linear.*False.\['model'\].state_dict\(\)",
        ),
        (
            {"v": torch.zeros(2), "w": torch.zeros(2).to_sparse()},
            "entry 'w' is a torch._utils._rebuild_sparse_tensor, no tensor",
        ),
    ):
        torch.save(content, path, _use_new_zipfile_serialization=new)
        with pytest.raises(InputError, match=reason):
            torchfiles.load(path)
    content = {"v": torch.zeros(2), "w": torch.zeros(2, dtype=torch.complex64)}
    torch.save(content, path)
    with pytest.raises(InputError, match=r"entry 'w' is a torch.ComplexFloatStorage"):
        torchfiles.load(path)


@pytest.mark.slow
def test_the_checkpoints_that_trainers_write_are_read(tmp_path):
    """As timm's CheckpointSaver and torchvision's references write them."""
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    average = torch.optim.swa_utils.AveragedModel(model)
    with torch.no_grad():
        average.module[0].weight.mul_(2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.zeros(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 6])
    args = argparse.Namespace(
        lr=np.float64(0.1),
        output=pathlib.Path("out"),
        betas={0.9, 0.99},
        when=datetime.timedelta(seconds=3),
        key=collections.defaultdict(list, a=[1]),
    )
    assert isinstance(scheduler.state_dict()["milestones"], collections.Counter)
    weights = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    average_of = {key: tensor.numpy() for key, tensor in average.state_dict().items()}
    whole = {
        "epoch": 3,
        "arch": "resnet50",
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "version": 2,
        "args": args,
        "amp_scaler": torch.amp.GradScaler("cpu").state_dict(),
        "state_dict_ema": average.state_dict(),
        "metric": np.float32(0.7),
    }
    references = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "epoch": 3,
        "args": args,
        "model_ema": average.state_dict(),
    }
    for content, first, other in (
        (whole, "state_dict", "state_dict_ema"),
        (references, "model", "model_ema"),
    ):
        for protocol in (2, 4):
            path = tmp_path / "model_best.pth.tar"
            torch.save(content, path, pickle_protocol=protocol)
            found = torchfiles.load(path)
            check(found.tensors, weights)
            assert found.notes == (
                f"of the file, '{first}' is taken (model_best.pth.tar#{other} takes"
                f" '{other}')",
            )
            named = torchfiles.load(path, other)
            check(named.tensors, average_of)
            assert named.notes == (f"of the file, '{other}' is taken",)
