"""timm's names over featnet: ``featnet.compat.timm.layers`` is what ``timm.layers`` is called here.

Its modules are made from the tables of :mod:`featnet.compat.names` when they are imported.
"""

from .. import modules as _modules

__version__ = _modules.VERSION
__path__ = []  # all below comes from the tables
__all__ = _modules.listed("")
__getattr__, __dir__ = _modules.accessors("")
_modules.install()
