"""Ratchets: who may import whom, what is loaded when, which names are public, how long files
get."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import featnet
from featnet import registry

PACKAGE = Path(featnet.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))

# A folder, or a file that is none's, may import those of the rows above its own, and its own.
# Within a folder nothing imports in circles.
ORDER = (
    {"collector", "errors", "size"},
    {"values"},
    {"aliases", "capabilities", "features", "layers", "tracing", "weights"},
    {"contract", "inputs", "registry"},
    {"backbone"},
    {"checkpoints", "extraction", "models"},
    {"adapters", "deploy", "dilation", "images", "training"},
    {"assembly", "initial"},
    {"blueprint"},
    {"factory"},
    {"cli", "compat", "survey"},
)
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
FAMILY_MAY = {"features", "weights", "layers", "registry", "backbone", "errors"}
# (family, family that it builds on)
FAMILY_EDGES = {(family, "resnet") for family in ("hrnet", "res2net", "resnest", "senet", "sknet")}
FAMILY_EDGES |= {("vit", "_vit_blocks"), ("vit", "_vit_keys"), ("vit_hybrid", "resnet")}
FAMILY_EDGES |= {("vit_hybrid", "resnetv2"), ("inception_resnet_v2", "inception_v4")}
FAMILY_EDGES |= {("pnasnet", "nasnet")}
FAMILY_EDGES |= {(f"vit_{kind}", "vit") for kind in ("hybrid", "relpos", "sam")}
FAMILY_EDGES |= {(f"vit_{kind}", "_vit_blocks") for kind in ("relpos", "sam")}
FAMILY_EDGES |= {("eva", "vit"), ("eva", "_eva_keys"), ("eva", "_vit_keys"), ("beit", "eva")}
FAMILY_EDGES |= {("beit", "_eva_keys"), ("_eva_keys", "_vit_keys")}
FAMILY_EDGES |= {("swin_v2", "swin"), ("swin_v2_cr", "swin"), ("swin_v2_cr", "swin_v2")}
FAMILY_EDGES |= {("mobilenetv5", "efficientnet")}
FAMILY_EDGES |= {("repghost", "ghostnet"), ("pvt_v2", "swin")}
FAMILY_EDGES |= {("dla", "resnet"), ("dla", "res2net"), ("nest", "swin")}
FAMILY_EDGES |= {("hieradet_sam2", "hiera")}
FAMILY_EDGES |= {("twins", "pvt_v2"), ("twins", "swin"), ("pit", "_vit_blocks")}
FAMILY_EDGES |= {("cpubone", "lowformer"), ("mobilevit", "byobnet"), ("mobilevit", "_vit_blocks")}
FAMILY_EDGES |= {("maxxvit", "_maxxvit_blocks")}

PUBLIC = [
    "Backbone",
    "EngineNet",
    "ExportReport",
    "Family",
    "Feature",
    "FeatureBasis",
    "FeatureDictNet",
    "FeatureHookNet",
    "FeatureHooks",
    "FeatureInfo",
    "FeatureListNet",
    "Features",
    "FrozenBatchNorm2d",
    "GraphExtractor",
    "ImageTransform",
    "LoadReport",
    "OptimizeReport",
    "SimplePyramid",
    "Tap",
    "Weights",
    "build_model_with_cfg",
    "convert_checkpoint",
    "create_feature_extractor",
    "create_model",
    "create_transform",
    "demo_weights",
    "discover",
    "export",
    "extract",
    "extract_dataset",
    "extract_images",
    "extract_tiled",
    "feature_info",
    "freeze",
    "get_graph_node_names",
    "get_weights",
    "is_model",
    "list_models",
    "list_modules",
    "list_pretrained",
    "list_taps",
    "load_checkpoint",
    "load_optimized",
    "model_entrypoint",
    "optimize",
    "pad_to_divisor",
    "param_groups",
    "pool_features",
    "prefetch",
    "push_to_hub",
    "read_features",
    "register",
    "register_model",
    "render_features",
    "reparameterize",
    "save_for_hub",
    "save_optimized",
    "set_output_stride",
    "unfreeze",
    "unpad",
]


def part(path: Path) -> str:
    """``errors`` of ``featnet/errors.py``, ``layers`` of ``featnet/layers/pool.py``."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """What a file imports of featnet, dotted below the package; anywhere but for type checkers."""
    package = ("featnet", *path.relative_to(PACKAGE).parts[:-1])
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unseen = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in unseen:
            continue
        if isinstance(node, ast.Import):
            yield from (a.name[8:] for a in node.names if a.name.startswith("featnet."))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            full = ".".join([*base, *([node.module] if node.module else [])])
            if full == "featnet" or full.startswith("featnet."):
                inside = full[8:]
                for alias in node.names:
                    name = f"{inside}.{alias.name}".strip(".")
                    file = PACKAGE / f"{name.replace('.', '/')}.py"
                    yield name if file.exists() or not inside else inside


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def test_the_reader_of_imports_sees_them() -> None:
    found = set(imports(PACKAGE / "factory.py"))
    assert {"checkpoints.sources", "registry", "backbone", "assembly", "errors"} <= found
    assert "layers" in set(imports(PACKAGE / "models" / "resnet.py"))


CORE = [f for f in FILES if part(f) not in ("__init__", "models", "__main__")]


@pytest.mark.parametrize("path", CORE, ids=relative)
def test_the_core_imports_downwards(path: Path) -> None:
    own = part(path)
    assert own in RANK, f"{own} has no row in ORDER"
    for name in imports(path):
        other = name.partition(".")[0]
        if other in ("__version__", "", own) or (own == "cli" and other in PUBLIC):
            continue
        stands_in = path.parent.name == "networks"  # loaded by name, for one family
        assert other != "models" or stands_in, f"{relative(path)} imports the family file {name}"
        assert other in RANK, f"{relative(path)} imports {name}"
        assert RANK[other] < RANK[own], f"{relative(path)} imports {name}, which is not below it"


def test_nothing_is_imported_in_circles() -> None:
    """Between files, whichever folder they are in."""
    files = {relative(f).removesuffix(".py").replace("/", "."): f for f in FILES}
    edges = {
        name: {n for n in imports(path) if n in files and n != name} for name, path in files.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"circle: {' -> '.join((*trail, name))}"
        if name not in done:
            for other in sorted(edges[name]):
                visit(other, (*trail, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def test_every_folder_says_what_is_in_it() -> None:
    for folder in {f.parent for f in FILES}:
        rule = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
        assert rule and rule.split("\n\n")[0].endswith("."), f"{relative(folder)} has no rule"


def test_the_page_of_the_design_shows_the_folders_and_their_order() -> None:
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\d+\. (.*)$", page, re.MULTILINE)
    there = {part(path) for path in FILES}
    order = [names & there for names in ORDER]
    assert [set(re.findall(r"`(\w+)`", row)) for row in rows] == [names for names in order if names]
    folders = {relative(path.parent) for path in FILES} - {"."}
    assert {name.rstrip("/") for name in re.findall(r"^\| `([\w/]+)`", page, re.MULTILINE)} == {
        *folders,
        "featnet",
    }


FAMILIES = [f for f in FILES if part(f) == "models" and f.stem != "__init__"]


@pytest.mark.parametrize("path", FAMILIES, ids=relative)
def test_a_family_imports_what_families_may(path: Path) -> None:
    for name in imports(path):
        if name.startswith("models."):
            edge = (path.stem, name.split(".")[1])
            assert edge in FAMILY_EDGES, f"{edge} is not a listed edge"
        else:
            assert name.partition(".")[0] in FAMILY_MAY, f"{relative(path)} imports {name}"


def test_the_package_imports_no_family() -> None:
    for path in (PACKAGE / "__init__.py", PACKAGE / "models" / "__init__.py"):
        assert not any(name.startswith("models") for name in imports(path))


# Laziness ---------------------------------------------------------------------------------------

HEAVY = ("torch", "torchvision", "timm", "huggingface_hub", "safetensors", "PIL", "numpy")


def loaded_by(code: str) -> set[str]:
    """Names of the modules that a fresh interpreter has after the code."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def families_in(modules: set[str]) -> set[str]:
    return {m for m in modules if m.startswith("featnet.models.")}


def test_names_and_tables_need_no_torch_and_no_family() -> None:
    modules = loaded_by(
        "import featnet, featnet.errors, featnet.weights\n"
        "assert len(featnet.list_models()) > 80\n"
        "assert featnet.list_pretrained('resnet18*')\n"
        "assert featnet.get_weights('resnet50.a1_in1k').mean\n"
        "assert featnet.is_model('resnet18') and featnet.list_modules()\n"
        "try: featnet.get_weights('resnet51')\n"
        "except LookupError: pass\n"
        "dir(featnet)\n"
    )
    assert not modules & set(HEAVY)
    assert not families_in(modules)


def test_import_alone_loads_nothing_but_itself() -> None:
    before, after = loaded_by("import typing, __future__"), loaded_by("import featnet")
    assert {m for m in after - before if m.startswith("featnet")} == {"featnet"}
    assert not after & set(HEAVY)


def test_creating_a_model_loads_its_family_and_no_hub() -> None:
    modules = loaded_by(
        "import featnet, torch\n"
        "with torch.device('meta'): featnet.create_model('resnet18', features_only=True)\n"
    )
    assert families_in(modules) == {"featnet.models.resnet"}
    assert not modules & {"torchvision", "timm", "huggingface_hub", "PIL"}
    assert "torch._dynamo" not in modules  # torch's initialisers import it on the meta device
    assert "featnet.cli" not in modules


# Names ------------------------------------------------------------------------------------------


def test_public_names() -> None:
    assert featnet.__all__ == PUBLIC
    assert all(getattr(featnet, name).__name__ == name for name in PUBLIC)
    assert set(PUBLIC) <= set(dir(featnet))
    # importing a module puts it in its package's namespace, in the place of such a name
    assert not {*PUBLIC} & {part(path) for path in FILES}
    with pytest.raises(AttributeError, match="'nothing'"):
        featnet.nothing  # noqa: B018


def test_type_checkers_see_the_public_names() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    seen = {
        alias.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    assert sorted(seen) == sorted([*PUBLIC, "adapters"])


def test_the_index_is_current() -> None:
    index = (registry.MODELS / "index.txt").read_text(encoding="utf-8")
    assert index == registry.render_index(), "run: python -m featnet.registry"


# Size and words ---------------------------------------------------------------------------------


def lines_outside_docstrings(*nodes: ast.AST) -> int:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    inner = [n for node in nodes for n in ast.walk(node) if isinstance(n, kinds)]
    documented = [n.body[0] for n in inner if ast.get_docstring(n) is not None]
    total, words = (
        sum(n.end_lineno - getattr(n, "lineno", 1) + 1 for n in counted)
        for counted in (nodes, documented)
    )
    return total - words


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_files_stay_short(path: Path) -> None:
    """A core file; of a family its classes and functions, not its tables. Docstrings are free."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes, limit = list(tree.body), 420
    if part(path) == "models":
        nodes = [n for n in nodes if isinstance(n, (ast.ClassDef, ast.FunctionDef))]
        limit = 600
    lines = lines_outside_docstrings(*nodes)
    assert lines <= limit, f"{relative(path)} has {lines} lines"


def definitions(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """Dotted name and node of every function and class that is not inside a function."""

    def inside(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.AST]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                yield prefix + child.name, child
                if isinstance(child, ast.ClassDef):
                    yield from inside(child, f"{prefix}{child.name}.")

    yield from inside(ast.parse(path.read_text(encoding="utf-8")), "")


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_functions_stay_short(path: Path) -> None:
    for name, node in definitions(path):
        if isinstance(node, ast.ClassDef):
            continue
        body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
        length = node.end_lineno - body[0].lineno + 1
        assert length <= 60, f"{relative(path)}:{name} has {length} lines below its docstring"


# What every module has: torch's own words stand for these
INHERITED = {"forward", "extra_repr", "train"}


@functools.cache
def documented_methods() -> set[str]:
    return {
        name.rpartition(".")[2]
        for path in FILES
        for name, node in definitions(path)
        if "." in name and ast.get_docstring(node)  # type: ignore[arg-type]
    }


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_what_is_public_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), relative(path)
    for name, node in definitions(path):
        words = name.split(".")
        setter = any(
            getattr(d, "attr", None) == "setter" or getattr(d, "id", None) == "overload"
            for d in getattr(node, "decorator_list", ())
        )
        if any(word.startswith("_") for word in words) or words[-1] in INHERITED or setter:
            continue
        if len(words) > 1 and (part(path) == "models" or words[-1] in documented_methods()):
            continue  # the skeleton, or the class that is overridden, has the words
        assert ast.get_docstring(node), f"{relative(path)}:{name} has no docstring"  # type: ignore[arg-type]


def test_no_asserts_on_what_users_give() -> None:
    """``assert`` is for invariants: none has a message for a reader."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assert):
                assert node.msg is None, f"{relative(path)}:{node.lineno}"


# Their signatures are torchvision's
BORROWED = {"create_feature_extractor", "get_graph_node_names"}


def test_public_signatures_have_few_positionals() -> None:
    for name in sorted({*PUBLIC} - BORROWED):
        value = getattr(featnet, name)
        if inspect.isclass(value):
            continue
        positional = [
            p
            for p in inspect.signature(value).parameters.values()
            if p.kind is p.POSITIONAL_OR_KEYWORD
        ]
        assert len(positional) <= 2, name
