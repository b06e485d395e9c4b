"""Files of weights, of safetensors and of torch, local or on a Hugging Face hub."""

import contextlib
import hashlib
import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from jaxcls import atomic
from jaxcls.errors import InputError, did_you_mean, first_line
from jaxcls.models.weights import facts, hub, torchfiles
from jaxcls.models.weights.facts import Facts, Preprocessing

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
ON_HUB = ("model.safetensors", "pytorch_model.bin")
# The dtypes of safetensors that are read.
DTYPES = re.compile(r"BOOL|[IU](8|16|32|64)|BF16|F(16|32|64)")


class Weights(NamedTuple):
    """The content of a file of weights.

    tensors: by the names in the file, in its layout; floating ones as float32.
    preprocessing: None if unknown. class_names: () if unknown.
    fingerprint: ``"sha256:<64 hex digits>"`` of the bytes of the file.
    """

    tensors: dict[str, np.ndarray]
    preprocessing: Preprocessing | None
    class_names: tuple[str, ...]
    fingerprint: str


def is_hub(place: str) -> bool:
    """Returns whether a place names a repository on the hub, ``"hf:ORG/NAME"``."""
    return place.startswith(hub.PREFIX)


def read(place: str, key: str) -> Weights:
    """Reads the weights of a file or of ``"hf:ORG/NAME[@revision]"``.

    key: the name of the config's key, for messages. Raises `InputError`, which names `key`
    or the file, for an absent, damaged or unsupported file, and for a hub that fails.
    """
    file, config = _find(place, key)
    load = _safetensors if file.suffix == ".safetensors" else torchfiles.load
    tensors = load(file)
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    found = _facts(place, file, config)
    floating = (np.floating, ml_dtypes.bfloat16)
    for name, values in tensors.items():
        if issubclass(values.dtype.type, floating):
            tensors[name] = values.astype(np.float32, copy=False)
    return Weights(tensors, *found, f"sha256:{digest}")


def preprocessing(place: str, key: str) -> Preprocessing | None:
    """Returns the preprocessing that `read` finds, without its tensors; None if unknown.

    From a hub it fetches only config.json, and so ignores the metadata of the hub's files
    of weights. Raises `InputError` like `read`.
    """
    if is_hub(place):
        config = hub.fetch(hub.parse(place, key), "config.json")
        return facts.of_config(config, True).preprocessing
    return _facts(place, *_find(place, key)).preprocessing


def write(
    path: pathlib.Path,
    tensors: Mapping[str, np.ndarray],
    preprocessing: Preprocessing | None,
    class_names: Sequence[str],
) -> None:
    """Writes a .safetensors file, whole or not at all: the same bytes for the same input.

    tensors: they are written as float32. `read` returns everything again. Raises
    `InputError` if `path` exists or cannot be written.
    """
    metadata = {"format": "pt"}
    if class_names:
        metadata[f"{facts.OURS}class_names"] = json.dumps(list(class_names))
    if preprocessing is not None:
        metadata[f"{facts.OURS}preprocessing"] = json.dumps(preprocessing._asdict())
    # The library would write metadata in random order.
    head: dict[str, Any] = {"__metadata__": metadata}
    floats = {name: np.asarray(tensors[name], np.float32) for name in sorted(tensors)}
    end = 0
    for name, values in floats.items():
        start, end = end, end + values.nbytes
        offsets = [start, end]
        head[name] = {"dtype": "F32", "shape": values.shape, "data_offsets": offsets}
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    remedy = "make room, or give a path where you may write"
    with atomic.explained(path, remedy):
        if path.exists() or path.is_symlink():
            raise InputError(f"{path} exists, and is not replaced; give another name")
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.writing(path, "wb", remedy) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for values in floats.values():
            file.write(values.tobytes())


def _find(place: str, key: str) -> tuple[pathlib.Path, pathlib.Path | None]:
    """Returns (file of weights, its config.json, which may be absent)."""
    if not is_hub(place):
        file = _local(place, key)
        return file, file.with_name("config.json")
    repository = hub.parse(place, key)
    for name in ON_HUB:
        found = hub.fetch(repository, name)
        if found is not None:
            # The folder's name is the commit. It gives the config of the same commit.
            commit = repository._replace(revision=found.parent.name)
            return found, hub.fetch(commit, "config.json")
    raise InputError(
        f"{key}={place} holds neither {' nor '.join(ON_HUB)}; give a repository of an image"
        " classifier, such as hf:timm/resnet50.a1_in1k"
    )


def _facts(place: str, file: pathlib.Path, config: pathlib.Path | None) -> Facts:
    """Returns the facts in a file of weights, or else those in a config.json of timm."""
    ours = Facts()
    if file.suffix == ".safetensors":
        with _opened(file) as opened:
            ours = facts.of_metadata(file, opened.metadata() or {})
    theirs = facts.of_config(config, strict=is_hub(place))
    return Facts(
        ours.preprocessing or theirs.preprocessing, ours.class_names or theirs.class_names
    )


def _safetensors(file: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a .safetensors file by name, in the file's dtypes."""
    with _opened(file) as opened:
        names = sorted(opened.keys())
        for name in names:
            dtype = opened.get_slice(name).get_dtype()
            if not DTYPES.fullmatch(dtype):
                raise ValueError(f"{name} is of dtype {dtype}, and must be as F32 or BF16")
        if not names:
            raise ValueError("it holds no tensor")
        return {name: opened.get_tensor(name) for name in names}


@contextlib.contextmanager
def _opened(file: pathlib.Path) -> Iterator[Any]:
    """Opens a .safetensors file; raises `InputError` in place of other errors."""
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            yield opened
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        reason = first_line(error)
        reason = reason if reason.isprintable() else ascii(reason)
        raise InputError(
            f"{file} cannot be read as safetensors ({reason}); download it again, or write"
            " it again"
        ) from None


def _local(place: str, key: str) -> pathlib.Path:
    """Returns an existing local file with a known suffix, or raises `InputError`."""
    kinds = f"a file of weights ({', '.join(SUFFIXES)}), or hf:ORG/NAME"
    try:
        file = pathlib.Path(place).expanduser()
        if not file.exists():
            near = did_you_mean(file.name, [each.name for each in file.parent.glob("*")])
            raise InputError(f"{key}={place}: there is no such file{near}; give {kinds}")
        if (file / ON_HUB[0]).is_file():
            file /= ON_HUB[0]  # A folder as the hub has it.
        if file.is_dir():
            inside = sorted(each.name for each in file.iterdir() if each.suffix in SUFFIXES)
            shown = ", ".join(inside)[:200] or "none"
            raise InputError(
                f"{key}={place} is a folder, and must be {kinds}; in it: {shown}"
            )
        if file.suffix not in SUFFIXES:
            raise InputError(f"{key}={place} is of another kind, and must be {kinds}")
        return file
    except (OSError, RuntimeError, ValueError) as error:  # Raised for impossible names.
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{key}={place} cannot be read ({reason}); give {kinds}") from None
