"""Other libraries' names over featnet, for code that calls them: timm's.

``use_as_timm()`` puts :mod:`featnet.compat.timm` in the place of ``timm``. Nothing else in featnet
imports this folder.
"""

from .switch import Switch, use_as_timm

__all__ = ["Switch", "use_as_timm"]
