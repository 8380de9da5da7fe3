"""Locate the bytes of a checkpoint: a file, the hub, an address.

They are fetched by the hub's own client (and torch.hub's, for urls), with their caches, tokens and
offline settings; what is cached is used without asking the network.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..weights import Weights
from . import files

ON_THE_HUB = files.WEIGHTS[:4]


class _UnreachableError(CheckpointError):
    """A file that is not in the cache, of a hub that does not answer."""


def locate(weights: Weights, *, cache_dir: str | Path | None = None, refresh: bool = False) -> Path:
    """A local file with the weights: given, from the Hugging Face hub, or from their url.

    Args:
        refresh: ask the hub whether there is something newer than what is cached.

    Raises:
        CheckpointError: there is no source, it cannot be reached, or its hash is another.
    """
    if weights.file:
        path = files.local(weights.file)
        path = files.in_folder(path) if path.is_dir() else path
        return check_hash(path, weights.sha256) if path.is_file() else path
    if weights.hf_hub_id:
        name = weights.hf_hub_filename
        path = _from_hub(weights.hf_hub_id, (name,) if name else ON_THE_HUB, cache_dir, refresh)
        return check_hash(path, weights.sha256, owned=True)
    if weights.url:
        return check_hash(_from_url(weights.url, cache_dir), weights.sha256, owned=True)
    name = f"{weights.architecture}.{weights.tag}".rstrip(".")
    raise CheckpointError(f"There are no pretrained weights for {name!r}.")


def is_immutable(weights: Weights) -> bool:
    """Tell if :func:`locate` gives a file of the hub's cache, which is named by its contents and
    which nobody writes into."""
    return bool(weights.hf_hub_id) and not weights.file


def _from_hub(repo: str, names: Sequence[str], cache_dir: str | Path | None, refresh: bool) -> Path:
    fetch = functools.partial(hub_file, repo, cache_dir=cache_dir, refresh=refresh, missing_ok=True)
    for name in names:
        try:
            path = fetch(name)
        except _UnreachableError:
            # which of the files the repository has is not known, but which of them are here
            kept = (_cached(repo, other, cache_dir) for other in names if not refresh)
            name, path = next(((p.name, p) for p in kept if isinstance(p, Path)), (name, None))
            if path is None:
                raise
        if path is None:
            continue
        if name.endswith(".index.json"):
            # shards of the same commit, whatever has been pushed since
            pinned = f"{repo.partition('@')[0]}@{path.parent.name}"
            for shard in files.shards(path):
                hub_file(pinned, shard, cache_dir)
        return path
    raise CheckpointError(f"The hub's {repo!r} has none of {', '.join(names)}.")


def _cached(repo: str, name: str, cache_dir: str | Path | None) -> Any:
    """Return the path of a file in the cache, ``_CACHED_NO_EXIST`` where the repository is known
    not to have it, else None."""
    from huggingface_hub import try_to_load_from_cache

    repo_id, _, revision = repo.partition("@")
    cached = try_to_load_from_cache(repo_id, name, revision=revision or None, cache_dir=cache_dir)
    return Path(cached) if isinstance(cached, str) else cached


def hub_file(
    repo: str,
    name: str,
    cache_dir: str | Path | None = None,
    refresh: bool = False,
    missing_ok: bool = False,
) -> Any:
    """One file of a repository, from the cache or else from the hub; None where there is none and
    that is allowed."""
    from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    repo_id, _, revision = repo.partition("@")
    options: dict[str, Any] = {"revision": revision or None, "cache_dir": cache_dir}
    try:
        cached = None if refresh else _cached(repo, name, cache_dir)
        if isinstance(cached, Path):
            return cached
        if cached is _CACHED_NO_EXIST and missing_ok:
            return None
        return Path(hf_hub_download(repo_id, name, library_name="featnet", **options))
    except (HFValidationError, ValueError) as error:
        raise CheckpointError(f"{repo!r} is no repository of the hub, org/name: {error}") from error
    except LocalEntryNotFoundError as error:
        raise _unreachable(repo, name, cache_dir, error) from error
    except EntryNotFoundError as error:
        if missing_ok:
            return None
        raise CheckpointError(f"The hub's {repo!r} has no {name}.") from error
    except Exception as error:
        raise _explained(repo, name, cache_dir, error) from error


def _cache(cache_dir: str | Path | None) -> str:
    from huggingface_hub import constants

    return str(cache_dir or constants.HF_HUB_CACHE)


def _unreachable(
    repo: str, name: str, cache_dir: str | Path | None, error: BaseException
) -> CheckpointError:
    why = error.__cause__ or error
    reason = str(why).strip().split("\n")[0] or type(why).__name__
    return _UnreachableError(
        f"{name} of {repo!r} is not in the local cache ({_cache(cache_dir)}) and the hub cannot be "
        f"reached: {reason} Fetch it where there is a network (featnet prefetch 'hf-hub:{repo}'), "
        "or give a file: checkpoint_path=."
    )


def _explained(
    repo: str, name: str, cache_dir: str | Path | None, error: Exception
) -> CheckpointError:
    """Explain an error of the hub, and what to do about it."""
    from huggingface_hub import errors

    repo_id, _, revision = repo.partition("@")
    login = "'hf auth login', or the environment variable HF_TOKEN"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        text = f"is gated: accept its conditions on its page at the hub, then log in ({login})."
    elif isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        text = f"does not exist, or is private: check the name, or log in ({login})."
    elif isinstance(error, errors.RevisionNotFoundError):
        text = f"has no revision {revision or 'main'!r}."
    elif status == 429:
        text = f"cannot be fetched now: too many requests. Wait, or log in ({login})."
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        text = f"does not fit on the disk of the cache, {_cache(cache_dir)}: cache_dir= or HF_HOME."
    elif isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        text = f"cannot be kept, {_cache(cache_dir)} cannot be written: cache_dir= or HF_HOME."
    else:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        text = f"cannot be fetched: {reason}"
    return CheckpointError(f"{name} of the hub's {repo_id!r}: the repository {text}")


def _from_url(url: str, cache_dir: str | Path | None) -> Path:
    import torch
    from filelock import FileLock

    folder = Path(cache_dir) if cache_dir else Path(torch.hub.get_dir()) / "checkpoints"
    name = url.partition("?")[0].rpartition("/")[2]
    if not url.startswith(("https://", "http://", "file://")) or name in ("", ".", ".."):
        raise CheckpointError(f"{url!r} is no url of a file.")
    file = folder / name
    if file.exists():
        return file
    match = torch.hub.HASH_REGEX.search(file.name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):  # of several processes, one fetches it
            if not file.exists():
                torch.hub.download_url_to_file(url, str(file), match.group(1) if match else None)
    except Exception as error:
        raise CheckpointError(f"{url} cannot be fetched: {error}") from error
    return file


def check_hash(path: Path, sha256: str | None, *, owned: bool = False) -> Path:
    """Compare a file with the (start of the) SHA-256 that was pinned; without one, do nothing.

    Args:
        owned: the file is a cache's: one with another hash is removed.

    Raises:
        CheckpointError: it has another.
    """
    if not sha256:
        return path
    if not re.fullmatch(r"[0-9a-fA-F]{8,64}", sha256):
        raise CheckpointError(f"sha256={sha256!r}: 8 to 64 hexadecimal digits are expected.")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    computed = digest.hexdigest()
    if computed.startswith(sha256.lower()):
        return path
    if owned:
        path.resolve().unlink(missing_ok=True)  # the blob, which the snapshot links to
        path.unlink(missing_ok=True)
    gone = " It was removed from the cache." if owned else ""
    raise CheckpointError(f"{str(path)!r} has the SHA-256 {computed}, not {sha256}.{gone}")
