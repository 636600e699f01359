"""The command line as a program uses it: words in, one JSON object out."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from modelgit.cli.app import main

Tell = Callable[..., Any]


def teller(capfd: pytest.CaptureFixture[str]) -> Tell:
    """Returns what runs a command line with --json and returns its object; it expects the exit code."""

    def run(*words: str, code: int = 0) -> Any:
        capfd.readouterr()
        got = main([*words, "--json"])
        out, err = capfd.readouterr()
        assert got == code, f"{out}{err}"
        table = json.loads(out)
        return table.get("error", table)

    return run
