"""The floors of the house: imports go downward only, and each foreign library lives in its own rooms.

Also counts the budgets of `CONTRIBUTING.md`: raising a number here is a reviewed line.
"""

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "modelgit"
LAYERS = [
    ["errors", "events", "version"],
    ["formats"],
    ["store"],
    ["remotes"],
    ["repo"],
    ["merge", "train"],
    ["certify", "recipe"],
    ["porcelain", "report"],
    ["integrations", "pipeline"],
    ["cli"],
]
FLOOR = {room: floor for floor, rooms in enumerate(LAYERS) for room in rooms}
TORCH_ROOMS = {"merge", "train", "porcelain"}
ONLY_IN = {
    "git": {"repo"},
    "typer": {"cli"},
    "rich": {"cli"},
    "click": set[str](),
    "torch": TORCH_ROOMS,
    "numpy": {"store", *TORCH_ROOMS},
    "zstandard": {"store"},
}
MEDIAN_LINES, P90_LINES, MAX_LINES = 12, 35, 60
FILE_LINES, FOLDER_FILES, PARAMETERS = 500, 12, 6


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):  # imports inside functions count too
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def violations(path: Path, tree: ast.AST) -> Iterator[str]:
    here = room(path)
    for line, module in imports(tree):
        top, *rest = module.split(".")
        there = rest[0] if top == "modelgit" and rest else None
        if there in FLOOR and there != here and FLOOR[there] >= FLOOR.get(here, len(LAYERS)):
            yield f"{path.name}:{line}: {here} may not import {there}"
        if here not in ONLY_IN.get(top, {here}):
            yield f"{path.name}:{line}: {here} may not import {top}"


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of the body, without its docstring."""
    first = node.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    start = first.end_lineno if documented and first.end_lineno else node.lineno
    return (node.end_lineno or node.lineno) - start


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len([name for name in names if name not in {"self", "cls"}])


def is_command(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """A typer command's parameters are its options: the limit does not apply to them."""
    return any("command" in ast.unparse(decorator) for decorator in node.decorator_list)


def parsed() -> list[tuple[Path, ast.Module]]:
    return [(path, ast.parse(path.read_text())) for path in modules()]


def test_imports_go_downward_only() -> None:
    assert [line for path, tree in parsed() for line in violations(path, tree)] == []


def test_the_rule_catches_an_upward_import() -> None:
    tree = ast.parse("def late():\n    from modelgit.repo.repository import Repository\n    import rich\n")
    assert list(violations(PACKAGE / "store" / "made_up.py", tree)) == [
        "made_up.py:2: store may not import repo",
        "made_up.py:3: store may not import rich",
    ]


def test_function_length_budget() -> None:
    sizes = {f"{path.name}:{f.name}": code_lines(f) for path, tree in parsed() for f in functions(tree)}
    assert {name: n for name, n in sizes.items() if n > MAX_LINES} == {}
    ordered = sorted(sizes.values())
    assert statistics.median(ordered) <= MEDIAN_LINES
    assert ordered[int(0.9 * (len(ordered) - 1))] <= P90_LINES


def test_file_and_folder_budget() -> None:
    long = {path.name: n for path in modules() if (n := len(path.read_text().splitlines())) > FILE_LINES}
    assert long == {}
    folders = {path.parent for path in modules()}
    full = {
        f.name: n for f in folders if (n := len([p for p in f.glob("*.py") if p.name != "__init__.py"])) > FOLDER_FILES
    }
    assert full == {}


def test_parameter_budget() -> None:
    many = {
        f"{path.name}:{f.name}": parameters(f)
        for path, tree in parsed()
        for f in functions(tree)
        if parameters(f) > PARAMETERS and not is_command(f)
    }
    assert many == {}


def test_every_module_opens_with_its_idea() -> None:
    assert [path.name for path, tree in parsed() if not ast.get_docstring(tree)] == []
