"""Rules about files and names that no linter knows (STYLE.md), held by reading the files."""

import ast
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "nmoe").rglob("*.py"))
MAX_LINES = 400
MAX_FUNCTION_LINES = 60
HOMELESS = {"util", "utils", "helper", "helpers", "misc", "common", "manager", "managers"}
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
LOADERS = {"torch.load", "torch.save", "pandas.read_pickle", "pd.read_pickle"}
IGNORED = {".git", ".venv", "__pycache__", "runs", "build", "dist", ".hypothesis"}
# Files that may probe with hasattr, or getattr with a default, each with its reason.
MAY_PROBE: dict[str, str] = {}
# Absolute paths of one machine; a lookbehind lets URLs and relative paths pass, and the pattern does not match itself.
MACHINE_PATH = re.compile(r"(?<![\w./~-])/(?:work|root|opt)/")

each_source = pytest.mark.parametrize("path", [pytest.param(path, id=path.relative_to(ROOT).as_posix()) for path in SOURCES])


def project_files() -> list[Path]:
    """Return every file that is, or would be, committed."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listing = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
        )
        paths = [ROOT / os.fsdecode(name) for name in listing.stdout.split(b"\0") if name]
    else:
        paths = [path for path in ROOT.rglob("*") if not IGNORED & set(path.relative_to(ROOT).parts)]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def syntax(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def dotted(node: ast.expr) -> str:
    """Return ``a.b.c`` for a chain of names, else an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (front := dotted(node.value)):
        return f"{front}.{node.attr}"
    return ""


def calls(tree: ast.Module) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def imported(tree: ast.Module) -> set[str]:
    """Return the full names of what a file imports, at the top or inside functions."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def class_table() -> dict[str, ast.ClassDef]:
    """Return every class of nmoe by its name."""
    return {node.name: node for path in SOURCES for node in ast.walk(syntax(path)) if isinstance(node, ast.ClassDef)}


def methods(node: ast.ClassDef) -> dict[str, str | None]:
    """Return the public methods of a class and their docstrings."""
    functions = [line for line in node.body if isinstance(line, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {function.name: ast.get_docstring(function) for function in functions if not function.name.startswith("_")}


def inherited(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> set[str]:
    """Return the names of the documented public methods of a class's bases, as far as they are nmoe's."""
    names = set()
    for base in node.bases:
        name = dotted(base.value if isinstance(base, ast.Subscript) else base).split(".")[-1]
        if name in classes and name != node.name:
            names |= {method for method, docstring in methods(classes[name]).items() if docstring} | inherited(classes[name], classes)
    return names


def swallows(handler: ast.ExceptHandler) -> bool:
    """Say whether a handler catches everything and does nothing with it."""
    if handler.type is None:
        return True
    empty = all(isinstance(line, ast.Pass | ast.Continue) or ast.unparse(line) == "..." for line in handler.body)
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return empty and any(dotted(kind) in {"Exception", "BaseException"} for kind in caught)


def test_no_file_or_folder_is_a_homeless_drawer():
    named = [path.relative_to(ROOT) for path in project_files()]
    assert [path.as_posix() for path in named if HOMELESS & {path.stem.lower(), *(part.lower() for part in path.parent.parts)}] == []


def test_no_committed_file_names_a_path_of_one_machine():
    found = []
    for path in project_files():
        try:
            lines = path.read_text("utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # not text
        found += [f"{path.relative_to(ROOT)}:{number}" for number, line in enumerate(lines, 1) if MACHINE_PATH.search(line)]
    assert found == []


def test_folders_of_tests_and_of_nmoe_mirror_each_other():
    tests = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    folders = {path.parent.relative_to(ROOT / "nmoe") for path in SOURCES}
    assert tests - folders == set(), "tests of folders that nmoe does not have"
    assert {folder.parts[0] for folder in folders if folder.parts} - {folder.parts[0] for folder in tests if folder.parts} == set()


@each_source
def test_file_opens_by_saying_what_it_is(path):
    assert ast.get_docstring(syntax(path))


def test_public_methods_say_what_they_do_or_their_abstract_method_does():
    classes = class_table()
    silent = []
    for path in SOURCES:
        for node in ast.walk(syntax(path)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                known = inherited(node, classes)
                silent += [f"{path.name}:{node.name}.{name}" for name, doc in methods(node).items() if not doc and name not in known]
    assert silent == []


@each_source
def test_file_is_not_too_long(path):
    assert len(path.read_text("utf-8").splitlines()) <= MAX_LINES


@each_source
def test_functions_are_not_too_long(path):
    functions = [node for node in ast.walk(syntax(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [node.name for node in functions if node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES] == []


@each_source
def test_no_exception_is_swallowed(path):
    handlers = [node for node in ast.walk(syntax(path)) if isinstance(node, ast.ExceptHandler)]
    assert [handler.lineno for handler in handlers if swallows(handler)] == []


@each_source
def test_nothing_is_pickled(path):
    tree = syntax(path)
    assert {name for name in imported(tree) if name.split(".")[0] in UNPICKLERS or name in LOADERS} == set()
    assert [call.lineno for call in calls(tree) if dotted(call.func) in LOADERS] == []
    keywords = [keyword for call in calls(tree) for keyword in call.keywords if keyword.arg == "allow_pickle"]
    assert [word.value.lineno for word in keywords if not (isinstance(word.value, ast.Constant) and word.value.value is False)] == []


@each_source
def test_nothing_is_probed(path):
    probes = [(dotted(call.func), len(call.args)) for call in calls(syntax(path))]
    found = [probe for probe in probes if probe[0] == "hasattr" or probe == ("getattr", 3)]
    assert found == [] or path.relative_to(ROOT).as_posix() in MAY_PROBE
