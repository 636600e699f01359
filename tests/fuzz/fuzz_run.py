"""Runs one target under the coverage-guided fuzzer: python tests/fuzz/fuzz_run.py TARGET [SECONDS [FOLDER]]

Inputs that found new code are kept in FOLDER, which a later run goes on from; one that fails is written to the current
folder, and `python tests/fuzz/fuzz_run.py TARGET FILE` shows it again. Needs atheris (Linux).
"""

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


def main(words: list[str]) -> None:
    """Runs the target, or replays a file."""
    target = words[1]
    if len(words) > 2 and Path(words[2]).is_file():
        fuzz_targets.TARGETS[target](Path(words[2]).read_bytes())
        return
    seconds = int(words[2]) if len(words) > 2 else 300
    folder = Path(words[3]) if len(words) > 3 else Path(tempfile.mkdtemp(prefix=f"fuzz-{target}-"))
    atheris.Setup([words[0], *arguments(target, seconds, folder)], fuzz_targets.TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
