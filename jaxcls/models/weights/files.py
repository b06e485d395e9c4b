"""Files of weights of several kinds, local or on a Hugging Face hub."""

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
from jaxcls.models.weights import (
    architectures,
    arrays,
    dialects,
    facts,
    hub,
    kinds,
    torchfiles,
    torchvision,
)
from jaxcls.models.weights.facts import Facts, Preprocessing

# The usual ones, for messages: the content tells the kind.
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".th", ".tar", ".npz", ".h5")
ON_HUB = ("model.safetensors", "pytorch_model.bin")
# The dtypes of safetensors that are read.
DTYPES = re.compile(r"BOOL|[IU](8|16|32|64)|BF16|F(16|32|64)")


class Weights(NamedTuple):
    """The content of a file of weights.

    tensors: by the names in the file, in its layout; floating ones as float32.
    preprocessing: None if unknown. class_names: () if unknown.
    fingerprint: ``"sha256:<64 hex digits>"`` of the bytes of the file, and a chosen entry.
    architecture: its name in timm; for a model of jaxcls "jaxcls." and the model with its
    options, or "" if they are unknown; None if all is unknown.
    notes: what was chosen of the file, in words.
    """

    tensors: dict[str, np.ndarray]
    preprocessing: Preprocessing | None
    class_names: tuple[str, ...]
    fingerprint: str
    architecture: str | None = None
    notes: tuple[str, ...] = ()


def is_hub(place: str) -> bool:
    """Returns whether a place names a repository on the hub, ``"hf:ORG/NAME"``."""
    return place.startswith(hub.PREFIX)


def read(place: str, key: str) -> Weights:
    """Reads the weights of a file or of ``"hf:ORG/NAME[@revision]"``.

    place: may end in ``"#NAME"``, the entry of a training checkpoint of torch that holds
    the tensors. key: the name of the config's key, for messages. Raises `InputError`, which
    names `key` or the file, for an absent, damaged or unsupported file, and for a hub that
    fails.
    """
    place, entry = _parts(place)
    file, *beside = _find(place, key)
    kind = kinds.kind_of(file, f"{key}={place}")
    if entry and kind != kinds.TORCH:
        raise InputError(
            f"{key}={place}#{entry} names an entry of a file of torch, and the file is of"
            f" {kind}; give {key}={place}"
        )
    notes: tuple[str, ...] = ()
    architecture: str | None = None
    if kind == kinds.TORCH:
        tensors, notes, architecture = torchfiles.load(file, entry)
    elif kind == kinds.KERAS:
        tensors = _of_keras(file, f"{key}={place}")
    else:
        load = _safetensors if kind == kinds.SAFETENSORS else arrays.of_npz
        tensors = load(file)
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    found = _facts(place, file, *beside)
    floating = (np.floating, ml_dtypes.bfloat16)
    for name, values in tensors.items():
        if issubclass(values.dtype.type, floating):
            tensors[name] = values.astype(np.float32, copy=False)
    fingerprint = f"sha256:{digest}" + (f"#{entry}" if entry else "")
    told = found.preprocessing, found.class_names
    if found.architecture is not None:
        architecture = found.architecture
    return Weights(tensors, *told, fingerprint, architecture, notes)


def preprocessing(place: str, key: str) -> Preprocessing | None:
    """Returns the preprocessing that `read` finds, without its tensors; None if unknown.

    From a hub it fetches only the JSON files, and so ignores the metadata of the hub's
    files of weights. Raises `InputError` like `read`.
    """
    place, _ = _parts(place)
    if is_hub(place):
        return _beside_facts(place, *_of_hub(hub.parse(place, key))).preprocessing
    return _facts(place, *_find(place, key)).preprocessing


def write(
    path: pathlib.Path,
    tensors: Mapping[str, np.ndarray],
    preprocessing: Preprocessing | None,
    class_names: Sequence[str],
    model: str = "",
) -> None:
    """Writes a .safetensors file, whole or not at all: the same bytes for the same input.

    tensors: they are written as float32. model: with its options, as in a config.
    `read` returns everything again. Raises `InputError` if `path` exists or cannot be
    written.
    """
    metadata = {"format": "pt"}
    if class_names:
        metadata[f"{architectures.OURS}class_names"] = json.dumps(list(class_names))
    if preprocessing is not None:
        metadata[f"{architectures.OURS}preprocessing"] = json.dumps(preprocessing._asdict())
    if model:
        metadata[f"{architectures.OURS}model"] = json.dumps(model)
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


def _parts(place: str) -> tuple[str, str]:
    """Returns (place, entry) of ``"PLACE#ENTRY"``; the entry of other places is ""."""
    before, hash, entry = place.rpartition("#")
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        if hash and pathlib.Path(place).expanduser().exists():
            return place, ""
    return (before, entry) if before else (place, "")


# A file of weights, its config.json and its preprocessor_config.json, which may be absent.
_Found = tuple[pathlib.Path, pathlib.Path | None, pathlib.Path | None]
_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"


def _find(place: str, key: str) -> _Found:
    """Returns the files of a place."""
    if not is_hub(place):
        file = _local(place, key)
        return file, file.with_name(_CONFIG), file.with_name(_PREPROCESSOR)
    repository = hub.parse(place, key)
    for name in ON_HUB:
        found = hub.fetch(repository, name)
        if found is not None:
            # The folder's name is the commit. It gives the config of the same commit.
            commit = repository._replace(revision=found.parent.name)
            return found, *_of_hub(commit)
    raise InputError(
        f"{key}={place} holds neither {' nor '.join(ON_HUB)}; give a repository of an image"
        " classifier, such as hf:timm/resnet50.a1_in1k"
    )


def _of_hub(repository: hub.Repository) -> tuple[pathlib.Path | None, pathlib.Path | None]:
    """Returns the JSON files of a repository; the second is for transformers' alone."""
    config = hub.fetch(repository, _CONFIG)
    if not facts.is_of_transformers(facts.read_json(config, strict=True)):
        return config, None
    return config, hub.fetch(repository, _PREPROCESSOR)


def _facts(
    place: str,
    file: pathlib.Path,
    config: pathlib.Path | None,
    preprocessor: pathlib.Path | None,
) -> Facts:
    """Returns the facts in a file of weights, or else torchvision's, or those beside."""
    ours = Facts()
    if kinds.kind_of(file, str(file)) == kinds.SAFETENSORS:
        with _opened(file) as opened:
            ours = facts.of_metadata(file, opened.metadata() or {})
    theirs = _beside_facts(place, config, preprocessor)
    return Facts(
        ours.preprocessing or torchvision.preprocessing(file) or theirs.preprocessing,
        ours.class_names or theirs.class_names,
        theirs.architecture if ours.architecture is None else ours.architecture,
    )


def _beside_facts(
    place: str, config: pathlib.Path | None, preprocessor: pathlib.Path | None
) -> Facts:
    """Returns the facts in the JSON files of timm or of transformers beside weights."""
    told = facts.read_json(config, strict=is_hub(place))
    if config is not None and facts.is_of_transformers(told):
        return facts.of_transformers(config, told, preprocessor)
    return facts.of_config(config, strict=is_hub(place))


def _of_keras(file: pathlib.Path, shown: str) -> dict[str, np.ndarray]:
    """Returns the tensors of a Keras file; raises `InputError` unless of MobileNetV2."""
    tensors, model = arrays.of_keras(file)
    if dialects.translated(tensors) is None:
        layers = sorted({name.partition("/")[0] for name in tensors})
        told = repr(model) if model else f"layers such as {', '.join(layers[:3])}"
        raise InputError(
            f"{shown} is a Keras file of {told[:80]}, and of Keras MobileNetV2 alone is"
            " read; give torchvision's or timm's weights of the model"
        )
    return tensors


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
    """Returns an existing local file, or raises `InputError`."""
    wanted = f"a file of weights ({', '.join(SUFFIXES)}), or hf:ORG/NAME"
    try:
        file = pathlib.Path(place).expanduser()
        if not file.exists():
            near = did_you_mean(file.name, [each.name for each in file.parent.glob("*")])
            raise InputError(f"{key}={place}: there is no such file{near}; give {wanted}")
        if (file / "saved_model.pb").exists():
            raise InputError(
                f"{key}={place} is a SavedModel of TensorFlow; of Keras's MobileNetV2, in"
                f" Python: keras.models.load_model({file.name!r}).save_weights("
                "'model.weights.h5')"
            )
        if (file / ON_HUB[0]).is_file():
            file /= ON_HUB[0]  # A folder as the hub has it.
        if file.is_dir():
            inside = sorted(each.name for each in file.iterdir() if each.suffix in SUFFIXES)
            shown = ", ".join(inside)[:200] or "none"
            raise InputError(
                f"{key}={place} is a folder, and must be {wanted}; in it: {shown}"
            )
        return file
    except (OSError, RuntimeError, ValueError) as error:  # Raised for impossible names.
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{key}={place} cannot be read ({reason}); give {wanted}"
        ) from None
