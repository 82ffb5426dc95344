"""Imports run one way, heavy packages stay behind their doors, and a reward worker does not load torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "seedtune"

# What each part may import of the others (errors: everyone may).
MAY_IMPORT = {
    "noise": set(),
    "es": set(),
    "journal": set(),
    "tasks": set(),
    "report": {"journal"},
    "perturb": {"noise", "es"},
    "engines": {"noise", "es", "perturb"},
    "fleet": {"noise", "es", "perturb", "engines", "tasks"},
    "compare": {
        "journal",
        "tasks",
        "engines",
        "report",
        "build",
        "assess",
        "recipe",
        "trainer",
        "environment",
        "evaluate",
    },
    "evaluate": {"noise", "es", "perturb", "engines", "tasks", "fleet"},
}
ONLY_IN = {
    "triton": {"noise/fused.py"},
    "vllm": {"engines/vllm.py", "engines/vllm_start.py", "engines/vllm_worker.py", "engines/vllm_packing.py"},
    "ray": {"fleet/ray.py", "fleet/ray_actor.py", "fleet/ray_scoring.py"},
    "trl": {"compare/rl.py"},
    "bitsandbytes": set(),  # whoever has such layers has imported it
}


def imports(file: Path) -> list[str]:
    """Absolute names of what a module imports, at any depth of its code."""
    package = ["seedtune", *file.relative_to(SOURCE).parent.parts]
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [f"{module}.{alias.name}" for alias in node.names]
    return found


def parts(name: str) -> str | None:
    pieces = name.split(".")
    return pieces[1] if pieces[0] == "seedtune" and len(pieces) > 1 else None


def test_imports_run_one_way():
    wrong = []
    for file in SOURCE.rglob("*.py"):
        here = file.relative_to(SOURCE).parts[0]
        if here not in MAY_IMPORT:
            continue
        allowed = MAY_IMPORT[here] | {here, "errors"}
        wrong += [f"{file.name} imports {n}" for n in imports(file) if parts(n) is not None and parts(n) not in allowed]
    assert not wrong


def test_every_part_is_named():
    folders = {p.name for p in SOURCE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders - {"cli"} <= set(MAY_IMPORT)


def test_nothing_imports_the_command_line_and_only_it_and_the_comparison_import_the_trainer():
    for file in SOURCE.rglob("*.py"):
        here = file.relative_to(SOURCE).parts[0]
        if here == "cli":
            continue
        names = {parts(n) for n in imports(file)}
        assert "cli" not in names, file
        if file.name != "__init__.py" and here != "compare":
            assert "trainer" not in names, file


def test_optional_packages_stay_behind_their_doors():
    for file in SOURCE.rglob("*.py"):
        for name in imports(file):
            root = name.split(".")[0]
            assert root not in ONLY_IN or str(file.relative_to(SOURCE)) in ONLY_IN[root], f"{file} imports {root}"


def test_the_algorithm_knows_numbers_only():
    for file in (SOURCE / "es").glob("*.py"):
        roots = {n.split(".")[0] for n in imports(file)}
        assert not roots & {"torch", "transformers", "pathlib", "os"}, file


def test_a_reward_worker_does_not_load_torch():
    code = (
        "import sys, seedtune.tasks.pool, seedtune.tasks.conciseness, seedtune.tasks.countdown;"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_no_module_outgrows_its_noun():
    long = {f.name: n for f in SOURCE.rglob("*.py") if (n := len(f.read_text().splitlines())) > 400}
    assert not long
