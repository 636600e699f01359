"""Where workers can run, and what is refused before anything is made."""

import pytest

from modelgit.errors import TrainingError, UsageError
from modelgit.pipeline.stacking import Stacking
from modelgit.pipeline.workers.places import table_of, workplace
from modelgit.pipeline.workers.ray import Ray, resources
from modelgit.store.objects import available_threads


def test_settings_are_keys_with_values() -> None:
    assert table_of(["partition=gpu", "exclusive", "comment=a=b"]) == {
        "partition": "gpu",
        "exclusive": "",
        "comment": "a=b",
    }


@pytest.mark.parametrize(
    ("on", "settings", "message"),
    [
        ("moon", (), "--on moon: no such place"),
        ("local", ("partition=gpu",), "--cluster is for --on slurm or --on ray"),
        ("ray", ("partition=gpu",), "--cluster partition: not a setting of --on ray"),
        ("ray", ("num_cpus=many",), "--cluster num_cpus=many: expected a number"),
        ("slurm", ("output=x",), "--cluster output: modelgit sets this itself"),
    ],
)
def test_places_and_settings_that_make_no_sense_are_refused(on: str, settings: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        workplace(on, settings, "cpu", 0)


def test_this_machine_has_a_worker_for_each_core() -> None:
    assert workplace("local", (), "cpu", 0).size == available_threads()
    assert workplace("local", (), "cpu", 3).size == 3
    assert workplace("local", (), "cpu", 3).stacking == Stacking(1, 3)
    told = "3 workers, one run each: nothing to stack; --workers 1 puts them together"
    assert workplace("local", (), "cpu", 3, 4).stacking == Stacking(4, 3, told)
    with pytest.raises(TrainingError, match="unknown device"):
        workplace("local", (), "abacus", 0)


def test_a_ray_job_takes_a_cpu_unless_told_otherwise() -> None:
    assert resources({}) == {"num_cpus": 1.0}
    assert resources({"num_cpus": "0", "num_gpus": "0.5"}) == {"num_cpus": 0.0, "num_gpus": 0.5}
    assert Ray.name == "Ray"
