"""The architecture: imports run one way, and what every worker process imports again stays light."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("study", "commands", "reporting", "selection", "tuning", "search_space", "data", "model")
"""Each may import those to its right."""
WITH_OPTUNA = {"commands", "reporting", "selection", "tuning", "search_space"}
HEAVY = {"optuna", "pandas", "plotly", "matplotlib", "torchvision"}
SPAWNED = ("study.py", "tuning/__init__.py", "tuning/workers.py", "search_space.py")
"""What a worker process imports before it has heard of its first trial."""


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported anywhere in `tree`, as written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room: str) -> None:
    files = [ROOT / f"{room}.py"] if (ROOT / f"{room}.py").exists() else sorted((ROOT / room).rglob("*.py"))
    assert files
    for file in files:
        for name in imported(ast.parse(file.read_text(encoding="utf-8"))):
            other = name.partition(".")[0]
            if other in ROOMS:
                assert ROOMS.index(room) <= ROOMS.index(other), f"{file} imports {name}"
                if (room, other) == ("data", "model"):
                    assert name.startswith(("model.preprocessing", "model.files", "model.limits")), (
                        f"{file} imports {name}"
                    )
            assert other != "optuna" or room in WITH_OPTUNA, f"{file} imports {name}"


def test_tests_do_not_import_benchmarks() -> None:
    for file in (ROOT / "tests").rglob("*.py"):
        names = list(imported(ast.parse(file.read_text(encoding="utf-8"))))
        assert not [name for name in names if name.partition(".")[0] == "benchmarks"], file


def test_one_module_reads_and_writes_the_attributes_of_trials() -> None:
    """Attributes of studies are read elsewhere, too."""
    for file in [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("user_attrs", "set_user_attr"):
                owner = ast.unparse(node.value)
                assert owner.endswith("study") or file == ROOT / "tuning" / "trials.py", f"{file}: {owner}.{node.attr}"


@pytest.mark.parametrize("name", SPAWNED)
def test_a_workers_first_files_name_nothing_heavy_at_module_level(name: str) -> None:
    top = [node for node in ast.parse((ROOT / name).read_text(encoding="utf-8")).body if not isinstance(node, ast.If)]
    outside = ast.Module([n for n in top if not isinstance(n, ast.FunctionDef | ast.ClassDef)], [])
    assert not HEAVY & {module.partition(".")[0] for module in imported(outside)}


def test_a_worker_process_starts_without_anything_heavy() -> None:
    """By what really is loaded: one import too deep costs every worker seconds."""
    code = "import sys, study, tuning, tuning.workers, search_space, tuning.trainer; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(done.stdout.split())


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, study; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not (HEAVY | {"torch", "numpy", "PIL"}) & set(done.stdout.split())


def test_the_readme_has_a_line_for_every_module() -> None:
    table = (ROOT / "README.md").read_text(encoding="utf-8")
    modules = [path.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    folders = ("sections", "field_guide")
    shown = [module.parent if module.parent.name in folders else module for module in modules]
    assert not {path.as_posix() for path in shown if path.name != "__init__.py" and f"`{path.as_posix()}" not in table}


def test_every_test_that_the_table_of_faults_names_is_there() -> None:
    """And is marked as long where the table says so."""
    table = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"(\*?)`(test_\w+\.py)::(\w+)`", table)
    assert len(named) > 50
    for star, file, name in named:
        above, _, rest = (ROOT / "tests" / file).read_text(encoding="utf-8").partition(f"\ndef {name}(")
        assert rest, f"{file}::{name}"
        marks = {"pytestmark = pytest.mark.long"} & {*above.splitlines()}
        marks |= {"@pytest.mark.long"} & {*above.rpartition("\n\n")[2].splitlines()}
        assert bool(marks) == bool(star), f"{file}::{name}"
