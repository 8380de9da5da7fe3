"""Every public name has its entry in the reference; one that has none fails the build."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

import featnet
import featnet.adapters
import featnet.compat
import featnet.errors

INHERITED = {"forward", "extra_repr", "train"}
logger = logging.getLogger(__name__)


def public_names() -> Iterator[str]:
    """Yield the names that users may import, with their module."""
    yield from (f"featnet.{name}" for name in featnet.__all__)
    for module in (featnet.adapters, featnet.compat):
        yield from (f"{module.__name__}.{name}" for name in module.__all__)
    for name, value in vars(featnet.errors).items():
        if inspect.isclass(value) and issubclass(value, featnet.errors.FeatnetError):
            yield f"featnet.errors.{name}"


def check(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of public names without an entry, and of entries without a docstring's words."""
    entries = env.domains.python_domain.objects
    for name in public_names():
        if name not in entries:
            logger.warning("the reference lacks the public name %s", name)


def skip_torch(
    app: Sphinx, what: str, name: str, member: object, skip: bool, options: object
) -> bool | None:
    """Leave out methods that torch documents, ``forward`` and the like, where we say no more."""
    return True if name in INHERITED and not getattr(member, "__doc__", None) else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the check to a build."""
    app.connect("autodoc-skip-member", skip_torch)
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
