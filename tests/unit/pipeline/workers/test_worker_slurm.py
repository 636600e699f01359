"""What Slurm's programs are told, and what their words mean."""

import pytest

from modelgit.errors import DependencyMissing, UsageError
from modelgit.pipeline.workers.slurm import Slurm, options, read_queue, refusal


def test_settings_are_options_of_sbatch() -> None:
    given = {"partition": "gpu", "time": "2:00:00", "cpus-per-task": "4", "exclusive": ""}
    assert options(given) == ["--partition=gpu", "--time=2:00:00", "--cpus-per-task=4", "--exclusive"]


@pytest.mark.parametrize("key", ["-p", "Partition", "output", "array", "a b", ""])
def test_what_is_no_option_or_ours_is_refused(key: str) -> None:
    with pytest.raises(UsageError, match="--cluster"):
        options({key: "x"})


def test_the_queue_tells_who_runs_and_why_others_wait() -> None:
    text = "4|RUNNING|None\n5|PENDING|Resources\n6|COMPLETING|None\n7|PENDING|Nodes required (A|B) DOWN\n8|FAILED|x\n\n"
    assert read_queue(text) == {"4": None, "6": None, "5": "Resources", "7": "Nodes required (A|B) DOWN"}
    assert read_queue("9|PENDING|None\n") == {"9": ""}  # nobody has looked at it yet


def test_a_refusal_says_what_slurm_said() -> None:
    error = refusal("step 'a' is refused", "sbatch: warning: x\nsbatch: error: invalid partition specified: gpu\n")
    assert error.message == "Slurm: step 'a' is refused: invalid partition specified: gpu"
    limited = refusal("x", "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job limit)")
    assert limited.hint == "--workers N has fewer jobs in the queue at a time"


def test_without_slurm_the_error_says_where_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(DependencyMissing, match="sbatch is not on this machine's path"):
        Slurm({}).check()
