"""Imports go down only: every import under kanpinn/ and problems/ is read and held to the table."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

# Modules and packages directly under kanpinn/, lowest layer first. Those of one layer may import
# each other.
LAYERS = (
    {"errors"},
    {"splines", "jets", "expressions"},
    {"models", "kernels"},
    {"geometry", "sampling", "problem", "conditions", "residuals", "ansatz"},
    {"optimisers"},
    {"training", "multilevel", "study", "parallel"},
    # __init__ is `kanpinn` itself
    {"io", "api", "plotting", "config", "registry", "checkpoint", "solution", "provenance"}
    | {"analysis", "__init__"},
    {"cli", "__main__"},
)
LAYER_OF = {name: layer for layer, names in enumerate(LAYERS) for name in names}
FILES_AND_TERMINAL = {"yaml", "h5py", "click", "matplotlib"}  # for layers above this one only:
LAST_PURE_LAYER = 5
PROBLEM_PACKAGES = {"problems", "kanpinn_problems"}


def dotted_name(path: Path, root: Path) -> str:
    """The module name of a file: kanpinn/splines/__init__.py is kanpinn.splines."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def absolute_base(node: ast.ImportFrom, package: str) -> str:
    """The absolute module that a ``from ... import`` names, seen from ``package``."""
    if node.level == 0:
        return node.module or ""
    parents = package.split(".")
    kept = parents[: len(parents) - node.level + 1]
    return ".".join([*kept, node.module] if node.module else kept)


def literal_import(node: ast.Call) -> str | None:
    """The module in ``import_module("...")`` or ``__import__("...")``, where it is a literal."""
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name not in {"import_module", "__import__"} or not node.args:
        return None
    match node.args[0]:
        case ast.Constant(value=str(target)):
            return target
        case _:
            return None


def imports(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted target of every import in a file, wherever in it they stand.

    ``from a import b`` gives ``a.b``, be b a module or a name in one.
    """
    module = dotted_name(path, root)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute_base(node, package)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and (target := literal_import(node)):
            if target.startswith("."):
                target = package + target
            yield node.lineno, target


def component(target: str, root: Path) -> str:
    """The entry of the table that a target inside kanpinn belongs to.

    A name that is no module of kanpinn (``from kanpinn import solve``) comes from ``__init__``.
    """
    first = [*target.split("."), "__init__"][1]
    is_module = (root / "kanpinn" / first).is_dir() or (root / "kanpinn" / f"{first}.py").is_file()
    return first if is_module or first in LAYER_OF else "__init__"


def library_fault(source: str, target: str, root: Path) -> str | None:
    """What is wrong with an import of ``target`` by the part ``source`` of kanpinn."""
    layer = LAYER_OF[source]
    top = target.partition(".")[0]
    if top in PROBLEM_PACKAGES:
        return "kanpinn names no problem package"
    if top in FILES_AND_TERMINAL and layer <= LAST_PURE_LAYER:
        return f"layer {layer} ({source}) knows nothing of {top}"
    if top != "kanpinn":
        return None
    imported = component(target, root)
    if LAYER_OF.get(imported, layer) > layer:
        return f"layer {layer} ({source}) imports layer {LAYER_OF[imported]} ({imported})"
    return None


def problem_fault(target: str, root: Path) -> str | None:
    """What is wrong with an import of ``target`` by a problem."""
    if target.partition(".")[0] != "kanpinn" or target in {"kanpinn", "kanpinn.__version__"}:
        return None
    name = target.partition(".")[2]
    if component(target, root) != "__init__" or name.startswith("_") or name == "*":
        return "problems use public names of kanpinn itself, by name"
    return None


def violations(root: Path) -> list[str]:
    """Every breach of the table in the tree at ``root``, as ``file:line: target: reason``."""
    found = []
    for path in sorted((root / "kanpinn").rglob("*.py")):
        parts = path.relative_to(root / "kanpinn").parts
        source = parts[0].removesuffix(".py")
        if source not in LAYER_OF:
            found.append(f"{path.relative_to(root)}: {source} has no layer in the table")
            continue
        for line, target in imports(path, root):
            if fault := library_fault(source, target, root):
                found.append(f"{path.relative_to(root)}:{line}: {target}: {fault}")
    for path in sorted((root / "problems").rglob("*.py")):
        for line, target in imports(path, root):
            if fault := problem_fault(target, root):
                found.append(f"{path.relative_to(root)}:{line}: {target}: {fault}")
    return found


def test_imports_go_down_only() -> None:
    assert (REPOSITORY / "kanpinn" / "errors.py").is_file(), "the tree to check is not here"
    assert violations(REPOSITORY) == []


def test_every_folder_is_a_package() -> None:
    """A folder without ``__init__.py`` is left out of an installed kanpinn without a word."""
    folders = {path.parent for path in (REPOSITORY / "kanpinn").rglob("*.py")}
    assert [str(f) for f in sorted(folders) if not (f / "__init__.py").is_file()] == []


def write_tree(root: Path, files: dict[str, str]) -> None:
    """A made-up repository: the given files over empty modules of four layers."""
    empty = ["__init__", "errors", "splines/__init__", "splines/basis", "models", "training", "api"]
    tree = {f"kanpinn/{name}.py": "" for name in empty} | {"problems/__init__.py": ""} | files
    for name, text in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


BAD = [
    ("kanpinn/splines/basis.py", "import kanpinn.models", "layer 1 (splines) imports layer 2"),
    ("kanpinn/splines/basis.py", "from kanpinn.models import KAN", "imports layer 2 (models)"),
    ("kanpinn/splines/basis.py", "from kanpinn import models", "imports layer 2 (models)"),
    ("kanpinn/splines/basis.py", "from .. import models", "imports layer 2 (models)"),
    ("kanpinn/splines/basis.py", "from ..models import KAN", "imports layer 2 (models)"),
    ("kanpinn/splines/__init__.py", "from ..models import KAN", "imports layer 2 (models)"),
    ("kanpinn/errors.py", "from .splines import basis", "layer 0 (errors) imports layer 1"),
    ("kanpinn/models.py", "def f():\n    from .training import run\n", "models.py:2: kanpinn.tr"),
    ("kanpinn/models.py", "if TYPE_CHECKING:\n    from . import training\n", "imports layer 5"),
    ("kanpinn/models.py", "from kanpinn import solve", "imports layer 6 (__init__)"),
    ("kanpinn/models.py", "import kanpinn", "imports layer 6 (__init__)"),
    ("kanpinn/models.py", 'import_module("kanpinn.training")', "imports layer 5 (training)"),
    ("kanpinn/models.py", 'importlib.import_module(".training", "kanpinn")', "imports layer 5"),
    ("kanpinn/__init__.py", "from .cli import main", "layer 6 (__init__) imports layer 7 (cli)"),
    ("kanpinn/training.py", "import h5py", "layer 5 (training) knows nothing of h5py"),
    ("kanpinn/optimisers/adam.py", "from yaml import load", "layer 4 (optimisers) knows nothing"),
    ("kanpinn/training.py", "import matplotlib.pyplot as plt", "knows nothing of matplotlib"),
    ("kanpinn/study.py", "def f():\n    import click\n", "study.py:2: click"),
    ("kanpinn/api.py", "import problems.poisson", "kanpinn names no problem package"),
    ("kanpinn/cli.py", "from kanpinn_problems import poisson", "kanpinn names no problem package"),
    ("kanpinn/cli.py", '__import__("kanpinn_problems")', "kanpinn names no problem package"),
    ("kanpinn/helpers.py", "", "helpers has no layer in the table"),
    ("kanpinn/tools/__init__.py", "", "tools has no layer in the table"),
    ("problems/heat.py", "from kanpinn.splines import basis", "public names"),
    ("problems/heat.py", "from kanpinn import splines", "public names"),
    ("problems/heat.py", "import kanpinn.splines.basis", "public names"),
    ("problems/heat.py", "from kanpinn import _private", "public names"),
    ("problems/heat.py", "from kanpinn import *", "public names"),
    ("problems/heat.py", "def f():\n    from kanpinn.api import solve\n", "heat.py:2: kanpinn.api"),
]

GOOD = [
    ("kanpinn/splines/basis.py", "from ..errors import KnotError\nfrom . import knots\n"),
    ("kanpinn/splines/basis.py", "import torch\nfrom kanpinn.jets import Jet\n"),
    ("kanpinn/training.py", "from . import models, splines\nfrom .multilevel import Level\n"),
    ("kanpinn/__init__.py", "def solve():\n    from .api import solve\n    from . import errors\n"),
    ("kanpinn/io/hdf5.py", "import h5py\nfrom kanpinn import __version__\n"),
    ("kanpinn/cli.py", "import click, kanpinn\nfrom kanpinn import api, solve\n"),
    ("problems/heat.py", "import kanpinn\nimport torch\nfrom kanpinn import Problem\n"),
    ("problems/heat.py", "from . import poisson\nfrom kanpinn_problems.poisson import Poisson\n"),
]


@pytest.mark.parametrize(("name", "text", "reason"), BAD)
def test_checker_finds(tmp_path: Path, name: str, text: str, reason: str) -> None:
    write_tree(tmp_path, {name: text})
    found = violations(tmp_path)
    assert len(found) == 1
    assert found[0].startswith(name)
    assert reason in found[0]


@pytest.mark.parametrize(("name", "text"), GOOD)
def test_checker_lets_pass(tmp_path: Path, name: str, text: str) -> None:
    write_tree(tmp_path, {name: text})
    assert violations(tmp_path) == []
