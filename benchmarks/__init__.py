"""featnet's figures, as ratios to timm measured in one run: ``python -m benchmarks``; on a GPU,
with timm or without: ``python -m benchmarks.gpu``."""
