"""featnet's figures, as ratios to timm measured in one run: ``python -m benchmarks``."""
