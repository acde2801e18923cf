"""Examples and the README's code run as they stand."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_example_runs_and_is_short(script: Path, tmp_path: Path) -> None:
    assert len(script.read_text().splitlines()) < 80
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "said" in done.stdout


def test_code_in_the_readme_is_the_first_example() -> None:
    """The README's code block is example 01 without its docstring, so what runs above is what a reader pastes."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    assert len(blocks) == 1
    example = (ROOT / "examples" / "01_train_and_ask.py").read_text().split('"""', 2)[2]
    assert blocks[0].strip() == example.strip()


def test_links_in_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text()):
        assert target.startswith("https://") or (ROOT / target).exists(), target
