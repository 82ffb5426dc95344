"""The table of imports holds, optional packages are imported in named modules only, a reward worker does not load
torch, and nothing is written twice.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "seedtune"

#: What the modules of each room may import of other rooms, besides `errors` and `utils`.
MAY_IMPORT = {
    "cli": {
        "compare", "training", "evaluation", "distributed", "rollout", "data", "engines", "perturb", "config", "tasks",
        "rewards", "report", "journal", "noise", "es",
    },
    "compare": {"training", "evaluation", "report", "data", "engines", "tasks", "rewards", "config", "journal"},
    "training": {
        "evaluation", "distributed", "rollout", "data", "tasks", "tools", "rewards", "engines", "perturb", "noise",
        "es", "journal", "report", "config",
    },
    "evaluation": {"rollout", "data", "tools", "rewards", "engines", "es"},
    "distributed": {"rollout", "data", "tools", "rewards", "engines", "es", "noise"},
    "rollout": {"data", "tools", "rewards", "engines", "noise", "es"},
    "data": {"engines", "tools", "rewards", "tasks", "noise"},
    "tools": {"rewards"},
    "engines": {"perturb", "noise", "es"},
    "perturb": {"noise", "es"},
    "config": {"es"},
    "tasks": {"sandbox"},
    "rewards": {"tasks", "sandbox"},
    "sandbox": set(),
    "report": {"journal"},
    "journal": set(),
    "noise": set(),
    "es": set(),
    "utils": set(),
}  # fmt: skip
#: Optional packages, and the modules that import them.
ONLY_IN = {
    "triton": ["noise/triton_kernels.py"],
    "vllm": ["engines/vllm/*.py"],
    "ray": ["distributed/ray_*.py"],
    "trl": ["compare/rl.py"],
    "math_verify": ["tasks/math_equal.py"],
    "reasoning_gym": ["tasks/gym/*.py"],
    "verifiers": ["tasks/verifiers.py"],
    "peft": ["engines/adapters.py"],
    "IPython": ["report/notebook.py"],
    "bitsandbytes": [],  # whoever has such layers has imported it
}


def modules() -> list[str]:
    """Paths of all modules, from the package's folder."""
    return sorted(file.relative_to(SOURCE).as_posix() for file in SOURCE.rglob("*.py"))


def imports(module: str) -> list[str]:
    """Absolute names of what a module imports, at any depth of its code."""
    package = ["seedtune", *Path(module).parts[:-1]]
    found = []
    for node in ast.walk(ast.parse((SOURCE / module).read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            found += [f"{name}.{alias.name}" for alias in node.names]
    return found


def rooms(module: str) -> set[str]:
    """The rooms of the package, and names at its root, that a module imports."""
    names = [name.split(".") for name in imports(module)]
    return {pieces[1] for pieces in names if pieces[0] == "seedtune" and len(pieces) > 1}


def test_imports_follow_the_table():
    wrong = set()
    for module in modules():
        room = Path(module).parts[0]
        if room in MAY_IMPORT:
            allowed = {room, "errors", "utils", "__version__", *MAY_IMPORT[room]}
            wrong |= {(module, other) for other in rooms(module) - allowed}
    assert not wrong


def test_the_map_of_contributing_names_every_module_and_nothing_else():
    """But for the commands, which are modules by the commands' names."""
    map_of_rooms = (SOURCE.parents[1] / "CONTRIBUTING.md").read_text().split("```")[3]
    named, room = set(), ""
    for line in map_of_rooms.splitlines()[2:]:
        room = line[2:16].strip() or room
        named |= {(room.strip("/"), name) for name in re.findall(r"\w+\.py", line)}
    there = {(Path(module).parts[0], Path(module).name) for module in modules() if not module.endswith("__init__.py")}
    assert named - there == set()
    assert {room for room, _ in there - named} == {"cli"}
    commands = [importlib.import_module(f"seedtune.cli.{Path(name).stem}") for _, name in there - named]
    assert all(hasattr(command, "add_arguments") for command in commands)


def test_every_room_is_in_the_table():
    folders = {path.name for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(MAY_IMPORT)
    assert all((SOURCE / folder / "__init__.py").exists() for folder in folders)


def test_the_arrows_have_no_circle():
    left = {room: set(others) for room, others in MAY_IMPORT.items()}
    while free := [room for room, others in left.items() if not others]:
        left = {room: others - set(free) for room, others in left.items() if room not in free}
    assert not left


def test_what_is_exported_is_documented():
    for room in [*MAY_IMPORT, "."]:
        package = importlib.import_module("seedtune" if room == "." else f"seedtune.{room}")
        for name in getattr(package, "__all__", []):
            exported = getattr(package, name)
            assert inspect.getdoc(exported) or not (inspect.isclass(exported) or inspect.isroutine(exported)), name


def test_the_root_holds_no_modules_but_errors():
    assert {path.name for path in SOURCE.iterdir() if path.is_file()} == {"__init__.py", "errors.py", "py.typed"}
    assert rooms("errors.py") == set()
    assert rooms("__init__.py") <= {"errors", "config", "rewards", "training"}


def test_optional_packages_are_imported_in_named_modules_only():
    for module in modules():
        for package in {name.split(".")[0] for name in imports(module)} & set(ONLY_IN):
            assert any(Path(module).match(pattern) for pattern in ONLY_IN[package]), f"{module} imports {package}"


def test_the_algorithm_knows_numbers_only():
    for module in modules():
        if module.startswith("es/"):
            assert not {n.split(".")[0] for n in imports(module)} & {"torch", "transformers", "pathlib", "os"}, module


def test_a_reward_worker_does_not_load_torch():
    code = (
        "import sys, seedtune.rewards.scorer, seedtune.tasks.conciseness, seedtune.tasks.countdown;"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_test_modules_do_not_import_one_another():
    for file in Path(__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.startswith("test_") for name in names), file


def code_lines(module: str) -> list[tuple[int, str]]:
    """The lines of a module, numbered, without blanks, brackets alone, comments, docstrings and imports."""
    text = (SOURCE / module).read_text()
    left_out = set()
    for node in ast.walk(ast.parse(text)):
        text_alone = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if text_alone or isinstance(node, ast.Import | ast.ImportFrom):
            left_out |= set(range(node.lineno, node.end_lineno + 1))
    lines = [(n, " ".join(line.split())) for n, line in enumerate(text.splitlines(), start=1) if n not in left_out]
    return [(n, line) for n, line in lines if any(c.isalnum() for c in line) and not line.startswith("#")]


def test_no_six_lines_stand_in_two_places():
    places = defaultdict(list)
    for module in modules():
        lines = code_lines(module)
        for k in range(len(lines) - 5):
            places[tuple(line for _, line in lines[k : k + 6])].append((module, lines[k][0]))
    twice = [where for where in places.values() if len(where) > 1]
    assert not twice
