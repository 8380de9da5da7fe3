"""The size of an image or a map, in pixels or cells."""

from __future__ import annotations

Size = tuple[int, int]
"""(height, width)"""
