"""Each fuzz target on its seeds, on damaged seeds, and a few seconds under the fuzzer; the kernel under sanitizers.

A long run: python tests/fuzz/fuzz_run.py TARGET SECONDS FOLDER
"""

import importlib.util
import random
import subprocess
import sys
from pathlib import Path

import fuzz_seeds
import fuzz_targets
import pytest

HERE = Path(__file__).parent
KERNEL = HERE.parents[1] / "modelgit" / "store" / "codec"
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
SECONDS = 4
targets = pytest.mark.parametrize("target", sorted(fuzz_targets.TARGETS))


@targets
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_seeds_and_damaged_seeds_are_read_or_refused(target: str) -> None:
    chance = random.Random(5)
    for seed in fuzz_seeds.seeds(target):
        fuzz_targets.TARGETS[target](seed)
        for _ in range(30):
            damaged = bytearray(seed)
            for _ in range(chance.randrange(1, 4)):
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
            fuzz_targets.TARGETS[target](bytes(damaged))


def test_a_repaired_pack_is_the_pack() -> None:
    for seed in fuzz_seeds.seeds("pack"):
        assert fuzz_targets.repaired(seed[1:]) == seed[1:]


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_the_fuzzer_finds_nothing_at_once(tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "fuzz_run.py"), "all", str(SECONDS), str(tmp_path / "corpus")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("DONE") == len(fuzz_targets.TARGETS)


def test_the_kernel_is_sound_under_sanitizers(tmp_path: Path) -> None:
    program, source = tmp_path / "driver", HERE / "kernel_driver.c"
    build = ["cc", "-O1", "-g", "-std=c11", *SANITIZE, f"-I{KERNEL}", str(source), "-o", str(program)]
    try:
        built = subprocess.run(build, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no C compiler")
    if built.returncode and "cannot find" in built.stderr:
        pytest.skip("no sanitizers beside the compiler")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "sound\n"
