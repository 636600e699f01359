"""What the README tells people to type works: its Python example, and the files it links to."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_example_runs(tmp_path: Path) -> None:
    (example,) = blocks("python")
    assert len([line for line in example.splitlines() if line]) <= 5
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "tensor([[1., 1., 1.]" in done.stdout


def test_every_link_leads_somewhere() -> None:
    pages = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
    ]
    missing = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
        if not (page.parent / target).exists() and not target.startswith("build/")
    ]
    assert missing == []


def test_the_commands_of_the_first_screen_are_make_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert {line.split()[1] for line in blocks("sh")[0].splitlines()} == {"demo", "test"}
    assert all(f"\n{target}:" in makefile for target in ("demo", "test"))
