"""MindCV's checkpoints."""

from __future__ import annotations

from .draft import Layout

LAYOUTS: tuple[Layout, ...] = ()
