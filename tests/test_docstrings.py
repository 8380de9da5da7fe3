"""Docstrings: their words, their sections, and their examples, which are run."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import fnmatch
import functools
import importlib
import inspect
import re
import socket
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import featnet
from featnet import registry

PACKAGE = Path(featnet.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
NAMES = {"featnet": featnet, "torch": torch, "__name__": "__main__"}  # in all examples
INHERITED = {"forward", "extra_repr", "train"}  # torch documents them
SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Example):", re.MULTILINE)


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def sections(text: str | None) -> dict[str, str]:
    """``Args``, ``Returns``, ... of a docstring, each with its text; ``""`` is what comes first."""
    head, *rest = SECTION.split(inspect.cleandoc(text or ""))
    parts = {"": head}
    for name, body in zip(rest[::2], rest[1::2], strict=True):
        parts[name] = parts.get(name, "") + body
    return parts


# Words ------------------------------------------------------------------------------------------


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each docstring of a file, private and nested ones as well."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        text = ast.get_docstring(node) if isinstance(node, kinds) else None
        if text is not None:
            yield getattr(node, "lineno", 1), text


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_docstrings_say_what_a_thing_is_or_does(path: Path) -> None:
    """They begin with a verb or a noun phrase, not with the question that they answer."""
    questions = [
        f"{relative(path)}:{line}: {text.splitlines()[0]}"
        for line, text in docstrings(path)
        if re.match(r"(What|Whether|How|Which|Who|Where|Why)\b", text)
    ]
    assert not questions, "\n".join(questions)


# Sections ---------------------------------------------------------------------------------------


def public() -> dict[str, Any]:
    """Every public name: functions, classes, and the classes' own public methods."""
    names: dict[str, Any] = {}
    for name in featnet.__all__:
        value = names[name] = getattr(featnet, name)
        for cls in reversed(value.__mro__) if inspect.isclass(value) else ():
            if cls.__module__.startswith("featnet."):
                members = ((m, v) for m, v in vars(cls).items() if not m.startswith("_"))
                names |= {f"{name}.{m}": v for m, v in members if is_method(v)}
    for name, value in vars(featnet.adapters).items():
        if name in featnet.adapters.__all__:
            names[f"adapters.{name}"] = value
    return names


def is_method(value: object) -> bool:
    kinds = (property, functools.cached_property, staticmethod, classmethod)
    return inspect.isfunction(value) or isinstance(value, kinds)


def function_of(value: Any) -> Callable[..., Any]:
    """The function behind a method, a property, a decorated function."""
    for attribute in ("fget", "func", "__func__"):
        value = getattr(value, attribute, None) or value
    return inspect.unwrap(value)  # type: ignore[no-any-return]


def parameters_of(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]


def raises(function: Callable[..., Any]) -> bool:
    """Does the function itself raise something (not: again what came from below)?"""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    inner = {
        id(x)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.Lambda)) and node is not tree.body[0]
        for x in ast.walk(node)
    }
    return any(
        isinstance(node, ast.Raise)
        and node.exc is not None
        and "NotImplementedError" not in ast.unparse(node.exc)
        and id(node) not in inner
        for node in ast.walk(tree)
    )


def returns(function: Callable[..., Any]) -> bool:
    return inspect.signature(function).return_annotation not in ("None", None, "NoReturn")


def described(text: str) -> set[str]:
    """Names that a section has a line for: ``name: ...``, ``one, two: ...``, ``**more: ...``."""
    heads = re.findall(r"^ {1,4}([*\w][\w*, ]*?)(?: \([^)]*\))?:", text, re.MULTILINE)
    return {name.strip(" *") for head in heads for name in head.split(",")}


def overridden(name: str, value: Any) -> str:
    """The docstring of a method, or that of the one which it overrides."""
    own = inspect.getdoc(function_of(value)) or ""
    owner, _, method = name.partition(".")
    cls = getattr(featnet, owner, None)
    if own or not inspect.isclass(cls):
        return own
    texts = (inspect.getdoc(vars(base)[method]) for base in cls.__mro__ if method in vars(base))
    return next((text for text in texts if text), "")


def lacks(name: str, value: Any) -> list[str]:
    """The sections that a public name should have and has not."""
    owner, _, method = name.partition(".")
    if inspect.isclass(value):
        functions = [vars(value)[m] for m in ("__init__", "__post_init__") if m in vars(value)]
        if dataclasses.is_dataclass(value):
            functions = functions[1:]  # the first is generated
        bases = [base for base in value.__mro__ if base.__module__.startswith("featnet.")]
        text = "\n".join(inspect.cleandoc(thing.__doc__ or "") for thing in [*bases, *functions])
        arguments = parameters_of(value)
        gives = False
    elif method in INHERITED and owner != "adapters":
        return []
    else:
        function = function_of(value)
        functions, text = [function], overridden(name, value)
        arguments = parameters_of(function)
        is_property = isinstance(value, (property, functools.cached_property))
        gives = returns(function) and not is_property
    parts = sections(text)
    named = described(parts.get("Args", "")) | described(parts.get("Attributes", ""))
    missing = [f"Args of {argument}" for argument in arguments if argument not in named]
    if gives and not {"Returns", "Yields"} & parts.keys():
        missing.append("Returns")
    if any(raises(function_of(f)) for f in functions) and "Raises" not in parts:
        missing.append("Raises")
    if (not method or owner == "adapters") and ">>> " not in parts.get("Example", ""):
        missing.append("Example")
    return missing


@pytest.mark.parametrize("name", sorted(public()))
def test_public_docstrings_are_whole(name: str) -> None:
    value = public()[name]
    assert not (missing := lacks(name, value)), f"{name} lacks {', '.join(missing)}"


def test_the_reference_has_every_public_name() -> None:
    """Without a build, which test_site.py does: ``docs/reference`` has an entry for each name."""
    pages = (PACKAGE.parent / "docs" / "reference").glob("*.rst")
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    entries = set(re.findall(r"^\.\. auto\w+:: (\S+)$", text, re.MULTILINE))
    lacking = {f"featnet.{name}" for name in featnet.__all__} - entries
    assert not lacking, "add an autofunction or autoclass line to a page of docs/reference"


def test_every_page_is_in_the_contents() -> None:
    """Each page of docs/ stands in a toctree of an index.md, by its name or by a pattern."""
    docs = PACKAGE.parent / "docs"
    lines = []
    for index in docs.rglob("index.md"):
        text, folder = index.read_text(encoding="utf-8"), index.parent.relative_to(docs)
        blocks = re.findall(r"^```{toctree}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        entries = (line for block in blocks for line in block.split() if not line.startswith(":"))
        lines += [(folder / entry).as_posix() for entry in entries]
    pages = (page.relative_to(docs).with_suffix("").as_posix() for page in docs.rglob("*.md"))
    lost = [page for page in pages if not any(fnmatch.fnmatch(page, line) for line in lines)]
    assert lost == ["index"], "add the page to a toctree of an index.md"


def test_the_check_of_sections_sees_what_is_missing() -> None:
    def no_words(x: int, *, y: int = 0) -> int:
        if x:
            raise ValueError(x)
        return y

    assert lacks("no_words", no_words) == ["Args of x", "Args of y", "Returns", "Raises", "Example"]


# Examples ---------------------------------------------------------------------------------------


def module_of(path: Path) -> str:
    words = ("featnet", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(words).removesuffix(".__init__")


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder without a network; models that are registered there are forgotten."""

    def refuse(*args: Any) -> None:
        raise AssertionError("an example needs a network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    torch.manual_seed(0)
    return tmp_path


def run_examples(module: ModuleType) -> str:
    """Run the examples in a module's docstrings; what went wrong, as text."""
    lines: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for test in doctest.DocTestFinder().find(module, extraglobs=NAMES):
        runner.run(test, out=lines.append)
    return "".join(lines)


WITH_EXAMPLES = [path for path in FILES if ">>> " in path.read_text(encoding="utf-8")]
APART = [path for path in WITH_EXAMPLES if "deploy" in path.parts]  # engines: alone_docstrings.py


@pytest.mark.parametrize("path", sorted({*WITH_EXAMPLES} - {*APART}), ids=relative)
def test_examples_run(path: Path, alone: Path) -> None:
    assert not (wrong := run_examples(importlib.import_module(module_of(path)))), wrong


def test_a_wrong_example_is_seen() -> None:
    module = ModuleType("wrong", ">>> 1 + 1\n3\n")
    assert "Expected:\n    3\nGot:\n    2\n" in run_examples(module)
