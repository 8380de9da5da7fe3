"""Draw the image of README.md: ``python -m tools.readme_image`` writes docs/cat.jpg."""

from __future__ import annotations

from pathlib import Path

import torch

import featnet

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Draw two levels of the demo's network beside the photograph that they are of."""
    net = featnet.create_model(
        "tf_efficientnet_lite0",
        features_only=True,
        out_indices=(1, 3),
        output_stride=8,
        checkpoint_path=featnet.demo_weights(),
    ).eval()
    image = ROOT / "examples" / "chelsea.png"
    with torch.inference_mode():
        maps = net(featnet.create_transform(net, fit="keep")([image]))
    picture = featnet.render_features(
        maps, image, captions=["level 1, stride 4", "level 3, stride 8"]
    )
    picture.save(ROOT / "docs" / "cat.jpg", quality=90, optimize=True)


if __name__ == "__main__":
    main()
