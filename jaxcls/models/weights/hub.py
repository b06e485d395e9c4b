"""Files of repositories on a Hugging Face hub, fetched once and then read from its cache.

HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME and HF_TOKEN have huggingface_hub's meaning. That
library reads them at import, so this module imports it on use.
"""

import contextlib
import logging
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from jaxcls.errors import InputError, first_line

PREFIX = "hf:"
_PLACE = re.compile(r"hf:(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class Repository(NamedTuple):
    """A repository ORG/NAME and its branch, tag or commit.

    `place` and `key` are for messages.
    """

    name: str
    revision: str
    place: str
    key: str


def parse(place: str, key: str) -> Repository:
    """Parses ``"hf:ORG/NAME[@revision]"``; raises `InputError`, which names `key`."""
    found = _PLACE.fullmatch(place)
    if not found:
        raise InputError(
            f"{key}={place} must be hf:ORG/NAME or hf:ORG/NAME@REVISION; try"
            " 'hf:timm/resnet50.a1_in1k'"
        )
    return Repository(found["name"], found["revision"] or "main", place, key)


def fetch(repository: Repository, name: str) -> pathlib.Path | None:
    """Returns the local path of a repository's file, or None if it has no such file.

    Raises `InputError` for a repository or revision that is absent or not readable, and for
    an unreachable hub if the file is not cached.
    """
    from huggingface_hub import errors, hf_hub_download

    if _COMMIT.fullmatch(repository.revision):  # A commit never changes.
        path, is_absent = _cached(repository, name)
        if path or is_absent:
            return path
    trouble = _trouble(repository, name)
    try:
        with _quiet():
            found = hf_hub_download(
                repository.name,
                name,
                revision=repository.revision,
                local_files_only=trouble is not None,
            )
    except errors.LocalEntryNotFoundError as error:
        if _cached(repository, name)[1]:
            return None
        cause = trouble or error.__cause__
        raise _unreached(
            repository, name, cause if isinstance(cause, Exception) else error
        ) from None
    except errors.EntryNotFoundError:
        return None
    except Exception as error:  # Versions of the hub's library raise different errors.
        raise _refusal(repository, name, error) from None
    return pathlib.Path(found)


def _trouble(repository: Repository, name: str) -> Exception | None:
    """Returns the error of a hub that fails, or None.

    `hf_hub_download` would wait for minutes, and reports all other errors at once. With
    HF_HUB_OFFLINE there is no error, because the library then sends no request.
    """
    from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        with _quiet():
            get_hf_file_metadata(
                hf_hub_url(repository.name, name, revision=repository.revision)
            )
    except errors.HfHubHTTPError as error:
        status = _status(error) or 0
        return error if status == 429 or status >= 500 else None
    except errors.HFValidationError:
        return None
    except Exception as error:  # Versions of the hub's library raise different errors.
        return error
    return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides the library's progress bars and log lines, because our messages suffice."""
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    is_ours = constants.HF_HUB_DISABLE_PROGRESS_BARS is None  # Else the user has set it.
    if is_ours:
        disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if is_ours:
            enable_progress_bars()


def _cached(repository: Repository, name: str) -> tuple[pathlib.Path | None, bool]:
    """Returns (cached file or None, whether the cache knows that the hub lacks it)."""
    from huggingface_hub import errors, try_to_load_from_cache

    try:
        found = try_to_load_from_cache(repository.name, name, revision=repository.revision)
    except errors.HFValidationError as error:
        raise _refusal(repository, name, error) from None
    if isinstance(found, str):
        return pathlib.Path(found), False
    return None, found is not None


def _status(error: Exception) -> int | None:
    """Returns the HTTP status of an error, or None."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _refusal(repository: Repository, name: str, error: Exception) -> InputError:
    """Returns the error for a request that the hub refuses."""
    from huggingface_hub import errors

    place = f"{repository.key}={repository.place}"
    if isinstance(error, errors.GatedRepoError):
        return InputError(
            f"{place} is gated: accept its terms on its page, and set HF_TOKEN to a token"
            " of yours that may read it"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return InputError(
            f"{place} is no repository of the hub, or a private one: correct the name, or"
            " set HF_TOKEN to a token that may read it"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(
            f"{place} has no revision {repository.revision!r}; give a branch, tag or commit"
            f" of it, or {PREFIX}{repository.name} for its main branch"
        )
    if isinstance(error, errors.HFValidationError):
        return InputError(
            f"{place} is no name of a repository ({first_line(error)}); give hf:ORG/NAME"
        )
    return InputError(
        f"{place}: {name} cannot be fetched ({first_line(error)}); try again, or"
        " download it and give the file"
    )


def _unreached(repository: Repository, name: str, cause: Exception) -> InputError:
    """Returns the error for a file that is not cached and that the hub does not give."""
    from huggingface_hub import constants

    place = f"{repository.key}={repository.place}"
    if constants.HF_HUB_OFFLINE:
        return InputError(
            f"{place}: {name} was not fetched before, and HF_HUB_OFFLINE is set; unset it,"
            " or fetch it once where there is a network and bring HF_HOME along"
        )
    if (status := _status(cause)) in (401, 403):
        return InputError(
            f"{place}: the hub forbids reading {name} (status {status}); set HF_TOKEN to a"
            " token that may read it"
        )
    return InputError(
        f"{place}: {name} was not fetched before, and {constants.ENDPOINT} does not give it"
        f" ({first_line(cause)}); check the network and HF_ENDPOINT, or give a local file"
    )
