"""Where the bytes of a checkpoint come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import CheckpointError
from .weights import Weights

FILES = ("model.safetensors", "pytorch_model.bin")


def locate(weights: Weights, *, cache_dir: str | Path | None = None) -> Path:
    """A local file with the weights: given, from the Hugging Face hub, or from their url.

    The hub's own client does the work, with its cache, token and offline settings.

    Raises:
        CheckpointError: there is no source, or it cannot be reached.
    """
    name = f"{weights.architecture}.{weights.tag}".rstrip(".")
    if weights.file:
        return Path(weights.file)
    if weights.hf_hub_id:
        return _from_hub(weights, cache_dir)
    if weights.url:
        return _from_url(weights.url, cache_dir)
    raise CheckpointError(f"There are no pretrained weights for {name!r}.")


def _from_hub(weights: Weights, cache_dir: str | Path | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repo, _, revision = str(weights.hf_hub_id).partition("@")
    files = (weights.hf_hub_filename,) if weights.hf_hub_filename else FILES
    error: Exception | None = None
    for file in files:
        try:
            options: dict[str, Any] = {"revision": revision or None, "cache_dir": cache_dir}
            return Path(hf_hub_download(repo, file, **options))
        except LocalEntryNotFoundError as missing:
            raise CheckpointError(
                f"{file} of {repo!r} is not in the local cache and the hub cannot be reached. "
                f"Fetch it where there is a network, or give a file: checkpoint_path=."
            ) from missing
        except EntryNotFoundError as missing:
            error = missing
        except Exception as other:
            raise CheckpointError(f"{file} of {repo!r} cannot be fetched: {other}") from other
    raise CheckpointError(f"The hub's {repo!r} has none of {', '.join(files)}.") from error


def _from_url(url: str, cache_dir: str | Path | None) -> Path:
    import torch

    folder = Path(cache_dir) if cache_dir else Path(torch.hub.get_dir()) / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / url.rpartition("/")[2]
    if not file.exists():
        found = torch.hub.HASH_REGEX.search(file.name)
        try:
            torch.hub.download_url_to_file(url, str(file), found.group(1) if found else None)
        except Exception as error:
            raise CheckpointError(f"{url} cannot be fetched: {error}") from error
    return file
