"""The rooms of the Python package: who may import whom, and what importing it costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "python" / "dormant"

# A room uses those of its own row and of the rows before; `__init__.py` and `__main__.py` use all.
ROWS = (
    ("_extension",),
    ("text",),
    ("publication",),
    ("tensors",),
    ("ranks",),
    ("reporting", "recording"),
    ("recipes", "quantization"),
    ("materialization",),
    ("tensor_parallel",),
    ("checkpoint",),
    ("loading", "saving"),
    ("integrations",),
    ("cli",),
)
ROW_OF = {room: row for row, rooms in enumerate(ROWS) for room in rooms}

OPTIONAL = frozenset(
    {
        "accelerate",
        "diffusers",
        "fsspec",
        "huggingface_hub",
        "matplotlib",
        "numpy",
        "peft",
        "rich",
        "timm",
        "torchvision",
        "tqdm",
        "transformers",
    }
)


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every module that a file imports, and whether a function does it; none only for types."""
    tree = ast.parse(path.read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)

    def visit(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            yield from ((alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides which room it is"
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole if whole in FILES else node.module), inside
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside or isinstance(node, functions))

    yield from visit(tree, False)


def room_of(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("module", FILES)
def test_imports_go_one_way(module: str) -> None:
    if module in ("dormant", "dormant.__main__"):
        return
    for imported, _ in imports(FILES[module]):
        if imported in ("dormant", "dormant._C") or not imported.startswith("dormant."):
            assert imported != "dormant", f"{module} imports the package, which imports everything"
            continue
        assert ROW_OF[room_of(imported)] <= ROW_OF[room_of(module)], f"{module} uses {imported}"


def test_every_file_has_a_room() -> None:
    outside = {"dormant", "dormant.__main__"}
    assert {room_of(module) for module in FILES if module not in outside} == set(ROW_OF)


def test_no_modules_import_each_other() -> None:
    uses = {
        module: {imported for imported, _ in imports(path) if imported in FILES}
        for module, path in FILES.items()
    }
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, f"a cycle: {' -> '.join((*way[way.index(module) :], module))}"
        if module not in done:
            for used in sorted(uses[module] - {"dormant"}):
                visit(used, (*way, module))
            done.add(module)

    for module in uses:
        visit(module, ())


@pytest.mark.parametrize("module", FILES)
def test_functions_import_optional_libraries_only(module: str) -> None:
    for imported, inside_a_function in imports(FILES[module]):
        if inside_a_function:
            assert imported.partition(".")[0] in OPTIONAL, f"{module} imports {imported} late"


def test_the_command_s_arguments_use_the_standard_library_only() -> None:
    for path in sorted((PACKAGE.parent / "dormant_command").rglob("*.py")):
        for imported, _ in imports(path):
            top = imported.partition(".")[0]
            assert top == "dormant_command" or top in sys.stdlib_module_names, path


def test_importing_the_package_loads_nothing_that_is_used_later() -> None:
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, torch\n"
            "before = set(sys.modules)\n"
            "import dormant\n"
            "print(*sorted(name for name in set(sys.modules) - before if '.' not in name))\n"
            "print(*sorted(name for name in set(sys.modules) - before if name[:6] == 'torch.'))",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    packages, parts_of_torch = result.stdout.split("\n")[:2]
    later = {"bitsandbytes", "numpy", "rich", "safetensors", "torchao", "transformers"}
    assert "dormant" in packages.split()
    assert not later & set(packages.split())
    assert parts_of_torch == ""
