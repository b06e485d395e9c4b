"""Files of repositories on a Hugging Face hub, fetched once and then read from its cache.

HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME and HF_TOKEN have huggingface_hub's meaning. That
library reads them at import, so this module imports it on use.
"""

import contextlib
import logging
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxcls.errors import InputError, first_line

PREFIX = "hf:"
# No part of a revision begins with a dot: the revision is a path in the cache.
_PLACE = re.compile(
    r"hf:(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w-][\w.-]*(/[\w-][\w.-]*)*))?", re.ASCII
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class Repository(NamedTuple):
    """A repository ORG/NAME and its branch, tag or commit.

    place: the key and its value, for messages.
    """

    name: str
    revision: str
    place: str


def parse(place: str, key: str) -> Repository:
    """Parses ``"hf:ORG/NAME[@revision]"``; raises `InputError`, which names `key`."""
    from huggingface_hub import errors, hf_hub_url

    found = _PLACE.fullmatch(place)
    with contextlib.suppress(errors.HFValidationError):
        if found and hf_hub_url(found["name"], "config.json"):  # It checks the name.
            revision = found["revision"] or "main"
            return Repository(found["name"], revision, f"{key}={place}")
    raise InputError(
        f"{key}={place} must be hf:ORG/NAME or hf:ORG/NAME@REVISION; try"
        " 'hf:timm/resnet50.a1_in1k'"
    )


def fetch(repository: Repository, name: str) -> pathlib.Path | None:
    """Returns the local path of a repository's file, or None if it has no such file.

    Raises `InputError` for a repository or revision that is absent or not readable, and for
    an unreachable hub if the file is not cached.
    """
    import huggingface_hub as library
    from huggingface_hub import constants, errors

    file, revision = (repository.name, name), repository.revision
    cached = library.try_to_load_from_cache(*file, revision=revision)
    is_final = cached and _COMMIT.fullmatch(revision)  # It never changes.
    error: Exception | None = None
    try:
        if not constants.HF_HUB_OFFLINE and not is_final:
            with quiet():
                _ask(library.hf_hub_url(*file, revision=revision))
                return pathlib.Path(library.hf_hub_download(*file, revision=revision))
    except Exception as caught:  # Versions of the hub's library raise different errors.
        error = caught
        is_local = isinstance(error, errors.LocalEntryNotFoundError)
        if isinstance(error, errors.EntryNotFoundError) and not is_local:
            return None
    if cached is None or _is_answer(error):
        raise _refusal(repository, name, error)
    # The cache also knows which files the hub lacks.
    return pathlib.Path(cached) if isinstance(cached, str) else None


def _is_answer(error: Exception | None) -> bool:
    """Returns whether a hub that works refuses, or this machine cannot store the file.

    Else the hub is not reached, and a file of the cache serves.
    """
    status = getattr(getattr(error, "response", None), "status_code", 0)
    return (400 <= status < 500 and status != 429) or bool(getattr(error, "errno", 0))


def _ask(url: str) -> None:
    """Raises the error of a hub that fails: `hf_hub_download` would wait for minutes.

    It reports all other errors at once.
    """
    from huggingface_hub import errors, get_hf_file_metadata

    try:
        get_hf_file_metadata(url)
    except errors.HfHubHTTPError as error:
        if error.response.status_code == 429 or error.response.status_code >= 500:
            raise


@contextlib.contextmanager
def quiet() -> Iterator[None]:
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


def _refusal(repository: Repository, name: str, error: Exception | None) -> InputError:
    """Returns the error for a file that is not cached and that the hub does not give.

    error: the hub's; None offline.
    """
    from huggingface_hub import constants, errors

    cause: Any = getattr(error, "__cause__", None) or error
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if error is None:
        reason = (
            f": {name} was not fetched before, and HF_HUB_OFFLINE is set; unset it, or"
            " fetch it once where there is a network and bring HF_HOME along"
        )
    elif isinstance(error, errors.GatedRepoError):
        reason = (
            " is gated: accept its terms on its page, and set HF_TOKEN to a token of yours"
            " that may read it"
        )
    elif isinstance(error, errors.RepositoryNotFoundError):
        reason = (
            " is no repository of the hub, or a private one: correct the name, or set"
            " HF_TOKEN to a token that may read it"
        )
    elif isinstance(error, errors.RevisionNotFoundError):
        reason = (
            f" has no revision {repository.revision!r}; give a branch, tag or commit of it,"
            f" or {PREFIX}{repository.name} for its main branch"
        )
    elif status in (401, 403):
        reason = (
            f": the hub forbids reading {name} (status {status}); set HF_TOKEN to a token"
            " that may read it"
        )
    else:
        reason = (
            f": {name} was not fetched before, and {constants.ENDPOINT} does not give it"
            f" ({first_line(cause)}); check the network and HF_ENDPOINT, or give a local"
            " file"
        )
    return InputError(f"{repository.place}{reason}")
