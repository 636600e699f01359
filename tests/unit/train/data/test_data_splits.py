"""Splits: DomainBed's to the letter without groups; with them no name stands on two sides."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from modelgit.errors import DataError
from modelgit.train.config import DataConfig
from modelgit.train.data.dataset import Dataset
from modelgit.train.data.loading import load_dataset
from modelgit.train.data.splits import Split, is_test_name, refuse_untrained_class, shuffled_keys, split

MakeZip = Callable[..., Path]


def names(dataset: Dataset, indices: "list[int]") -> set[str]:
    return {dataset.names[i] for i in indices}


def parts(path: Path, **settings: object) -> tuple[Dataset, Split]:
    config = DataConfig(str(path), held_out="rose", image_size=32, **settings)  # type: ignore[arg-type]  # by name
    dataset = load_dataset(config)
    return dataset, split(dataset, config)


def test_keys_are_shuffled_as_in_domainbed() -> None:
    assert shuffled_keys(10, 0, 0) == [2, 3, 8, 1, 4, 5, 0, 9, 6, 7]


def test_without_groups_the_first_fifth_validates_and_the_whole_domain_tests(make_zip: MakeZip) -> None:
    dataset, found = parts(make_zip(count=5))
    assert found.validation["ink"].tolist() == [2, 3]
    assert found.train["ink"].tolist() == [8, 1, 4, 5, 0, 9, 6, 7]
    assert sorted([*found.validation["leaf"], *found.train["leaf"]]) == list(range(10, 20))
    assert found.test.tolist() == list(range(20, 30))
    assert set(found.train) == {"ink", "leaf"} and len(dataset.names) == 30


def test_with_groups_no_name_stands_on_two_sides(make_zip: MakeZip) -> None:
    dataset, found = parts(make_zip(count=40), group="name")
    train = names(dataset, [i for group in found.train.values() for i in group])
    validation = names(dataset, [i for group in found.validation.values() for i in group])
    test = names(dataset, found.test.tolist())
    assert not train & validation and not train & test and not validation & test
    assert len(train | validation | test) == 80
    assert 0.25 < len(test) / 80 < 0.55
    assert names(dataset, found.train["ink"].tolist()) == names(dataset, found.train["leaf"].tolist())


def test_another_trial_draws_another_validation_and_keeps_the_test(make_zip: MakeZip) -> None:
    path = make_zip(count=40)
    (_, first), (_, second) = (parts(path, group="name", trial=trial) for trial in (0, 1))
    assert first.test.tolist() == second.test.tolist()
    assert first.validation["ink"].tolist() != second.validation["ink"].tolist()


def test_folds_turn_the_test_names() -> None:
    things = [f"thing-{n}" for n in range(500)]
    folds = [
        {n for n in things if is_test_name(n, DataConfig("x", test_fraction=0.25, fold=f, group="name"))}
        for f in range(5)
    ]
    assert set.union(*folds[:4]) == set(things)
    assert sum(len(fold) for fold in folds[:4]) == 500
    assert folds[4] == folds[0]


def test_the_share_of_test_names_is_what_was_asked() -> None:
    things = [f"thing-{n}" for n in range(4000)]
    for fraction in (0.05, 0.25, 0.44):
        tested = sum(is_test_name(n, DataConfig("x", test_fraction=fraction, group="name")) for n in things)
        assert abs(tested / 4000 - fraction) < 0.025


def test_too_few_images_are_named(make_zip: MakeZip) -> None:
    with pytest.raises(
        DataError, match="too few examples in domain 'ink' for a validation split: 4, needed at least 5"
    ):
        parts(make_zip(count=2))


def test_training_on_some_domains_leaves_the_others_out_of_validation_too(make_zip: MakeZip) -> None:
    _, whole = parts(make_zip(count=5))
    _, found = parts(make_zip(count=5), domains=("leaf",))
    assert list(found.train) == list(found.validation) == ["leaf"]
    assert found.train["leaf"].tolist() == whole.train["leaf"].tolist()
    assert found.test.tolist() == whole.test.tolist()


@pytest.mark.parametrize("group", ["none", "name"])
def test_shards_are_disjoint_and_together_everything(make_zip: MakeZip, group: str) -> None:
    path = make_zip(count=40)
    dataset, whole = parts(path, group=group)
    shards = [parts(path, group=group, shard=f"{k}/3")[1] for k in (1, 2, 3)]
    for domain, indices in whole.train.items():
        found = [i for shard in shards for i in shard.train[domain].tolist()]
        assert sorted(found) == sorted(indices.tolist())
        assert all(shard.validation[domain].tolist() == whole.validation[domain].tolist() for shard in shards)
    if group == "name":
        first, second = ({n for d in s.train.values() for n in names(dataset, d.tolist())} for s in shards[:2])
        assert not first & second


def test_leave_one_out_validates_on_a_whole_domain_that_is_not_trained_on(make_zip: MakeZip) -> None:
    _, found = parts(make_zip(count=5), validate_on="ink")
    assert list(found.train) == ["leaf"]
    assert list(found.validation) == ["ink"]
    assert found.validation["ink"].tolist() == list(range(10))


@pytest.mark.parametrize("group", ["none", "name"])
def test_an_oracle_looks_at_a_part_of_the_held_out_domain_and_tests_on_the_rest(make_zip: MakeZip, group: str) -> None:
    path = make_zip(count=40)
    _, whole = parts(path, group=group)
    _, found = parts(path, group=group, validate_on="rose")
    looked_at, tested = set(found.validation["rose"].tolist()), set(found.test.tolist())
    assert looked_at and tested and not looked_at & tested
    assert looked_at | tested == set(whole.test.tolist())
    assert {d: i.tolist() for d, i in found.train.items()} == {d: i.tolist() for d, i in whole.train.items()}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"domains": ("moss",)}, "no domain is called 'moss'"),
        ({"validate_on": "moss"}, "no domain is called 'moss'"),
        (
            {"domains": ("ink",), "validate_on": "leaf", "shard": "9/9"},
            "too few examples in domain 'ink' for a training split: 8, needed at least 12",
        ),
    ],
)
def test_parts_that_there_are_not_are_refused(make_zip: MakeZip, settings: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        parts(make_zip(count=4), **settings)


def table(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("text,label,domain\n" + "".join(f"text {i},{label},{d}\n" for i, (label, d) in enumerate(rows)))
    return path


def test_domains_of_different_classes_are_no_split(tmp_path: Path) -> None:
    rows = [("x", "p"), ("y", "p"), ("x", "q"), ("x", "q"), ("y", "r"), ("x", "r")]
    config = DataConfig(str(table(tmp_path / "t.csv", rows)))
    with pytest.raises(DataError, match=r"domains have different classes: no examples in q/y") as caught:
        split(load_dataset(config), config)
    assert caught.value.hint == "classes that a domain lacks cannot be learned or tested there"


def test_a_class_whose_examples_all_validate_is_refused(tmp_path: Path) -> None:
    rows = [("xy"[i % 2], "p") for i in range(24)] + [("rare", "p")]
    rows += [(label, "q") for label in ("x", "y", "rare", "rare", "rare")] * 2
    config = DataConfig(str(table(tmp_path / "t.csv", rows)), domains=("p",))
    dataset = load_dataset(config)
    trials = [replace(config, trial=trial) for trial in range(12)]
    lost = [t for t in trials if 24 in shuffled_keys(25, t.trial, 0)[:5]]
    assert 0 < len(lost) < len(trials)
    for trial in trials:
        parts = split(dataset, trial)
        if trial in lost:
            with pytest.raises(DataError, match="no example of class 'rare' is left to train on") as caught:
                refuse_untrained_class(dataset, parts, trial)
            hint = "1 validate; more examples of it, another trial, or a smaller share: validation_fraction"
            assert caught.value.hint == hint
            refuse_untrained_class(dataset, split(dataset, replace(trial, shard="1/2")), replace(trial, shard="1/2"))
        else:
            refuse_untrained_class(dataset, parts, trial)
