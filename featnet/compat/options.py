"""The wishes of ``use_as_timm`` for what is built."""

# Features nets have timm's flat children (stages_0)
flat = False
