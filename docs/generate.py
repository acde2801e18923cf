"""Pages about the methods, written from the docstrings that open their files.

``python docs/generate.py`` writes ``docs/methods/<folder>-<file>.md`` for every file that opens with a card (a docstring with a line
``Source:``), and ``docs/methods/README.md``, the list of them. ``--check`` writes nothing and fails where a page differs from its file.
Nothing of nmoe is imported.
"""

import argparse
import ast
import re
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "methods"
FAMILIES = ("learn", "federate", "moe", "channel", "deliver", "market")
SINGLE_FILES = ("node/protocol.py",)
NOTE = "<!-- Written by docs/generate.py from the docstring of {path}. Change it there, then run: make docs -->"


class Method(NamedTuple):
    """One file with a card: where it is, how its docstring reads, and the first lines of its public classes and functions."""

    path: Path
    title: str
    card: str
    public: list[tuple[str, str]]


def plain_title(line: str) -> str:
    """Return a docstring's first line as a heading: no full stop at its end."""
    return line.strip().rstrip(".")


def as_markdown(text: str) -> str:
    """Turn a docstring's double backticks into Markdown's single ones."""
    return re.sub(r"``([^`]+)``", r"`\1`", text).strip()


def read_method(path: Path) -> Method | None:
    """Read one file; None when it does not open with a card."""
    tree = ast.parse(path.read_text("utf-8"))
    docstring = ast.get_docstring(tree) or ""
    if not re.search(r"^Sources?:", docstring, re.MULTILINE):
        return None
    title, _, card = docstring.partition("\n")
    public = [
        (node.name, (ast.get_docstring(node) or "").split("\n")[0])
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_")
    ]
    return Method(path.relative_to(ROOT), plain_title(title), card.strip(), public)


def page(method: Method) -> str:
    """Return the page of one method."""
    source = method.path.as_posix()
    rows = "\n".join(f"| `{name}` | {as_markdown(line).replace('|', chr(92) + '|')} |" for name, line in method.public)
    table = f"\n| here | what it is |\n|---|---|\n{rows}\n" if rows else ""
    head = f"{NOTE.format(path=source)}\n\n# {as_markdown(method.title)}\n\nCode: [{source}](../../{source})\n"
    return f"{head}\n{as_markdown(method.card)}\n{table}"


def page_name(method: Method) -> str:
    """Return the file name of a method's page, such as ``federate-fedsc.md``."""
    return "-".join(method.path.relative_to("nmoe").with_suffix("").parts) + ".md"


def find_methods() -> list[Method]:
    """Return all files with a card, by folder and name."""
    files = [path for family in FAMILIES for path in sorted((ROOT / "nmoe" / family).rglob("*.py"))]
    files += [path for name in SINGLE_FILES if (path := ROOT / "nmoe" / name).is_file()]
    return [method for path in files if (method := read_method(path)) is not None]


def all_pages() -> dict[str, str]:
    """Return the text of every page by its file name."""
    methods = find_methods()
    listing = "\n".join(f"- [{as_markdown(method.title)}]({page_name(method)})" for method in methods)
    pages = {page_name(method): page(method) for method in methods}
    pages["README.md"] = f"{NOTE.format(path='each method')}\n\n# Methods\n\n{listing}\n"
    return pages


def differing(pages: dict[str, str]) -> list[str]:
    """Return the names of pages that are missing, differ, or have no file behind them any more."""
    present = {path.name: path.read_text("utf-8") for path in PAGES.glob("*.md")}
    return sorted(name for name in pages.keys() | present.keys() if pages.get(name) != present.get(name))


def main() -> int:
    """Write the pages, or check them; return the exit code."""
    parser = argparse.ArgumentParser(description="Write docs/methods from the docstrings of the methods' files.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a page is not what would be written")
    check = parser.parse_args().check
    pages = all_pages()
    names = differing(pages)
    if check:
        for name in names:
            print(f"docs/methods/{name} is not what the docstrings say; run: make docs", file=sys.stderr)
        return 1 if names else 0
    PAGES.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name in pages:
            (PAGES / name).write_text(pages[name], "utf-8")
        else:
            (PAGES / name).unlink()
    print(f"{len(pages)} pages in docs/methods, {len(names)} changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
