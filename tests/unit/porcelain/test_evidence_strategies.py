from pathlib import Path

import numpy as np
import pytest

from modelgit.porcelain.evidence.answers import pack_answers
from modelgit.porcelain.evidence.gathering import Examples
from modelgit.porcelain.evidence.strategies import differences, examples_of
from modelgit.recipe.expanding import Job
from modelgit.train.config import DataConfig
from modelgit.train.data.loading import load_dataset
from modelgit.train.data.splits import split

LABELS = np.arange(40) % 4
NAMES = tuple(f"thing-{i}" for i in range(40))


def job(name: str, held_out: str | None, seed: int = 0) -> Job:
    data = DataConfig("data.zip", held_out=held_out)
    return Job(name, "train", {"seed": seed}, ("base",), "mlp", evaluate=data)


def examples(job: Job) -> Examples:
    assert job.evaluate is not None and job.evaluate.held_out is not None
    return Examples(job.evaluate.held_out, str(job.bindings["seed"]), NAMES, LABELS)


def answering(right: int) -> dict[str, object]:
    answers = np.where(np.arange(40) < right, LABELS, (LABELS + 1) % 4)
    return {"answers": {"ood_accuracy": pack_answers(answers)}}


def test_rows_are_compared_with_references_cell_by_cell() -> None:
    jobs = {name: [job(f"{name}/{held}", held) for held in ("a", "b")] for name in ("soup", "erm")}
    rows = {"soup/a": answering(32), "soup/b": answering(28), "erm/a": answering(20), "erm/b": answering(20)}
    found = differences(jobs, ["erm"], rows, examples)
    assert found["soup"]["erm"].mean == pytest.approx(0.25)
    assert found["soup"]["erm"].low > 0
    assert found["erm"] == {}


def test_models_of_a_cell_count_as_their_mean() -> None:
    jobs = {"erm": [job("erm/0", "a"), job("erm/1", "a")], "soup": [job("soup", "a")]}
    rows = {"erm/0": answering(10), "erm/1": answering(30), "soup": answering(30)}
    assert differences(jobs, ["erm"], rows, examples)["soup"]["erm"].mean == pytest.approx(0.25)


def test_what_was_tested_elsewhere_is_not_compared() -> None:
    jobs = {"erm": [job("erm/a", "a"), job("erm/b", "b")], "one": [job("one", "a")], "none": [job("none", None)]}
    rows = {name: answering(20) for name in ("erm/a", "erm/b", "one", "none")}
    found = differences(jobs, ["erm"], rows, examples)
    assert found["one"] == {} and found["none"] == {}


def test_examples_are_those_of_the_split_in_its_order() -> None:
    path = Path(__file__).parents[3] / "examples" / "data" / "emojidg.zip"
    config = DataConfig(str(path), held_out="noto", group="name", fold=1, limit_per_class=8)
    found = examples_of(Job("soup", "merge", {}, ("x",), "mlp", evaluate=config))
    dataset = load_dataset(config)
    test = split(dataset, config).test
    assert (found.domain, found.seed) == ("noto", "1")
    assert found.names == tuple(dataset.names[i] for i in test)
    assert found.labels.tolist() == dataset.labels[test].tolist()
    assert len(found.names) > 10
