"""Files of the Hugging Face Hub, named so that no local path can be meant: hf://owner/name@revision/file."""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from girih_backbones.checkpoint import MAX_PLAN_BYTES

SCHEME = "hf://"
PLAN = "adaptation_plan.json"

_NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_IDENTIFIER = re.compile(rf"hf://(?P<repository>{_NAME}/{_NAME})(?:@(?P<revision>[^/@]+))?/(?P<file>[^@]+)")


@dataclass(frozen=True)
class Fetched:
    """A file in the local cache: where it lies, which it is (the revision as a commit), and its hash."""

    path: Path
    source: str
    sha256: str


def fetch(identifier: str, *, max_bytes: int) -> Fetched:
    """Return a file of the Hub, downloaded unless it is in huggingface_hub's cache.

    A branch or tag in `identifier`, "main" if there is none, is resolved to the commit it names now; a slash in it is
    written %2F. A plan in the same folder comes along with a checkpoint.

    Raises:
        ValueError: no such form, repository, revision or file; the file is larger than `max_bytes`, or its plan
            than any; huggingface_hub is not installed; the Hub cannot be reached and the file is not in the cache.
    """
    match = _IDENTIFIER.fullmatch(identifier)
    if match is None:
        raise ValueError("found another form, wanted hf://owner/name@revision/file")
    repository, name, revision = match["repository"], match["file"], unquote(match["revision"] or "main")
    try:
        from huggingface_hub import errors, hf_hub_download
    except ModuleNotFoundError as error:
        raise ValueError("needs huggingface_hub: pip install 'girih-backbones[hub]'") from error
    http_error: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]  # the base of its HTTP library's errors
    try:
        info = hf_hub_download(repository, name, revision=revision, dry_run=True)
        if info.file_size is not None and info.file_size > max_bytes:
            raise ValueError(f"found {info.file_size} bytes, wanted at most {max_bytes}")
        path = Path(hf_hub_download(repository, name, revision=revision))
        commit = path.parents[len(PurePosixPath(name).parts) - 1].name  # snapshots/<commit>/<name>
        if path.suffix != ".safetensors":
            with suppress(errors.EntryNotFoundError):  # the plan is inside the checkpoint, or there is none
                plan = str(PurePosixPath(name).with_name(PLAN))
                info = hf_hub_download(repository, plan, revision=commit, dry_run=True)
                if info.file_size is not None and info.file_size > MAX_PLAN_BYTES:
                    raise ValueError(f"{PLAN}: found {info.file_size} bytes, wanted at most {MAX_PLAN_BYTES}")
                hf_hub_download(repository, plan, revision=commit)
    except errors.LocalEntryNotFoundError as error:
        raise ValueError("the Hub cannot be reached, and the file is not in the cache") from error
    except errors.GatedRepoError as error:
        raise ValueError(f"repository {repository} is gated: accept its terms on the Hub and log in") from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(f"repository {repository}: not found, or not yours to see") from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"revision {revision}: not found in {repository}") from error
    except errors.EntryNotFoundError as error:
        raise ValueError(f"file {name}: not found in {repository} at {revision}") from error
    except (OSError, http_error) as error:
        first, *_ = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"cannot be fetched: {first}") from error
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Fetched(path, f"{SCHEME}{repository}@{commit}/{name}", sha256)
