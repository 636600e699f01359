"""Runs one target under the coverage-guided fuzzer: python tests/fuzz/fuzz_run.py TARGET [SECONDS [FOLDER]]

Inputs that found new code are kept in FOLDER, which a later run goes on from; one that fails is written to the current
folder, and `python tests/fuzz/fuzz_run.py TARGET FILE` shows it again. TARGET `all` runs one after another, each in a
fork, since what is imported takes longer to prepare than a short run. Needs atheris (Linux).
"""

import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["modelgit", "pickletools", "zipfile", "json"]):
    import fuzz_targets

import fuzz_seeds

MEMORY_MIB, INPUT_S, INPUT_BYTES = 2048, 10, 65536


def arguments(target: str, seconds: int, folder: Path) -> list[str]:
    """Return the fuzzer's own arguments; the seeds are written to `folder` first."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(fuzz_seeds.seeds(target)):
        (folder / f"seed-{number}").write_bytes(data)
    limits = [f"-rss_limit_mb={MEMORY_MIB}", f"-timeout={INPUT_S}", f"-max_len={INPUT_BYTES}"]
    return [f"-max_total_time={seconds}", *limits, "-seed=1", "-print_final_stats=1", str(folder)]


def run_all(words: list[str]) -> None:
    """Runs every target with a folder of its own; ends at the first that finds something."""
    program, _, seconds, folder = words
    for target in sorted(fuzz_targets.TARGETS):
        pid = os.fork()
        if not pid:
            main([program, target, seconds, f"{folder}/{target}"])
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code:
            sys.exit(f"{target}: ended with {code}")


def main(words: list[str]) -> None:
    """Runs the target, or replays a file."""
    target = words[1]
    if target == "all":
        run_all(words)
        return
    if len(words) > 2 and Path(words[2]).is_file():
        fuzz_targets.TARGETS[target](Path(words[2]).read_bytes())
        return
    seconds = int(words[2]) if len(words) > 2 else 300
    folder = Path(words[3]) if len(words) > 3 else Path(tempfile.mkdtemp(prefix=f"fuzz-{target}-"))
    atheris.Setup([words[0], *arguments(target, seconds, folder)], fuzz_targets.TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
