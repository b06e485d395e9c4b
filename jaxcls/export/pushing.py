"""A folder to a repository of a Hugging Face hub.

HF_ENDPOINT and HF_TOKEN have huggingface_hub's meaning; no message holds the token.
"""

import pathlib
import shlex
from typing import Any

from jaxcls.errors import InputError, first_line
from jaxcls.models.weights import hub


def check(name: str) -> None:
    """Raises `InputError` unless `name` is ORG/NAME, and there is a token of the hub."""
    import huggingface_hub as library

    try:
        is_name = "@" not in name and bool(hub.parse(f"{hub.PREFIX}{name}", "--push"))
    except InputError:
        is_name = False
    if not is_name:
        raise InputError(f"--push={name} must be ORG/NAME; try --push=me/flowers")
    if not library.get_token():
        raise InputError(
            f"--push={name} needs a token of the hub that may write there; set HF_TOKEN, or"
            " run `hf auth login`"
        )


def push(folder: pathlib.Path, name: str, public: bool) -> tuple[str, str]:
    """Commits a folder's files; returns the commit's address, and "private" or "public".

    The repository is made if it is absent, private unless `public`. Raises `InputError` if
    the hub fails or refuses, and if the repository is there and public without `public`.
    """
    import huggingface_hub as library

    api, command = library.HfApi(), f"hf upload {name} {shlex.quote(str(folder))}"
    try:
        with hub.quiet():
            api.create_repo(name, private=not public, exist_ok=True)
            is_private = api.repo_info(name).private
            if public or is_private:
                told = api.upload_folder(
                    repo_id=name,
                    folder_path=folder,
                    commit_message="Export of jaxcls",
                )
                return str(told.commit_url), "private" if is_private else "public"
    except Exception as error:  # Versions of the hub's library raise different errors.
        cause: Any = error.__cause__ or error
        reason = first_line(cause).replace(library.get_token() or "\n", "***")
        private = "" if public else " --private"  # Else a repository is made public.
        raise InputError(
            f"--push={name}: {api.endpoint} fails ({reason});"
            f" {folder} is whole: `{command}{private}` pushes it"
        ) from None
    raise InputError(
        f"--push={name}: the repository is there and public, and --public is not given;"
        f" {folder} is whole: `{command}` pushes it there, and with --private to another"
        " name"
    )
