"""What the tests share, in one name space; the parts say what each is for.

    python tests/helpers.py [FAMILY ...]

chooses the representatives of a new or changed family: see representatives.py.
"""

from __future__ import annotations

import sys

from dilation_law import GLOBAL, Local, LostPixels, error, law_error, law_sizes, without_global
from networks import (
    Cheap,
    attends,
    create,
    create_shallow,
    facts,
    facts_of,
    full_model,
    has_kernel,
    meta_model,
    parameter_count,
    repeats,
    shallow_model,
    sizes,
    small,
    strides,
    without,
)
from noise import NORMS, Unset, fill_noise, image_batch, noisy, settle
from peers import Intermediates, at_size, peer, peer_features, peer_model, peer_transformer
from representatives import (
    chosen,
    families,
    kinds_chosen,
    main,
    named,
    others,
    representatives,
    signature,
    structure,
    structures,
)

__all__ = [
    "GLOBAL",
    "NORMS",
    "Cheap",
    "Intermediates",
    "Local",
    "LostPixels",
    "Unset",
    "at_size",
    "attends",
    "chosen",
    "create",
    "create_shallow",
    "error",
    "facts",
    "facts_of",
    "families",
    "fill_noise",
    "full_model",
    "has_kernel",
    "image_batch",
    "kinds_chosen",
    "law_error",
    "law_sizes",
    "meta_model",
    "named",
    "noisy",
    "others",
    "parameter_count",
    "peer",
    "peer_features",
    "peer_model",
    "peer_transformer",
    "repeats",
    "representatives",
    "settle",
    "shallow_model",
    "signature",
    "sizes",
    "small",
    "strides",
    "structure",
    "structures",
    "without",
    "without_global",
]

if __name__ == "__main__":
    main(sys.argv[1:])
