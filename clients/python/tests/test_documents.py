"""Every program in the README, in the page of the documentation and in the examples runs as it stands.

Programs run in the environment of a shell in which the file of ``dev`` was sourced.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import DEV_ENVIRONMENT, FOLDER, ROOT

README = FOLDER / "README.md"
PAGE = ROOT / "docs/how-to/use-the-python-package.md"
EXAMPLES = sorted((FOLDER / "examples").glob("*.py"))


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of a language that are not marked as text."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def run(program: str | Path) -> str:
    """Runs a program, and returns what it prints."""
    source = [str(program)] if isinstance(program, Path) else ["-c", program]
    result = subprocess.run(
        [sys.executable, "-W", "error", *source],
        env=DEV_ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    # Besides log lines, by which `dev` is warned about.
    assert not re.search("Traceback|Exception|Warning", result.stderr), result.stderr
    return result.stdout


def cases() -> list[object]:
    found: list[object] = []
    for page in (README, PAGE):
        for number, program in enumerate(blocks(page, "python"), 1):
            found.append(pytest.param(program, id=f"{page.stem}-{number}"))
    found += [pytest.param(path, id=path.stem) for path in EXAMPLES]
    return found


@pytest.mark.parametrize("program", cases())
def test_runs(program: str | Path) -> None:
    run(program)


def test_the_first_example_prints_what_the_readme_says() -> None:
    first = blocks(README, "python")[0]
    assert run(first) == "('teesql_readwrite',)\n"
    assert "('teesql_readwrite',)" in README.read_text().replace(first, "")
