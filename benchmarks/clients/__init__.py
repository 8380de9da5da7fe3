"""Libraries that call timm, as their users call them: ``python -m benchmarks.clients``.

A file for each library; each of its functions is one use, written as for timm, and fails where the
library does. Nothing here knows of featnet.
"""
