"""What cannot be averaged, measured or honestly tested is found out before anything is trained."""

import io
import itertools
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from modelgit.errors import DataError, ModelgitError, RecipeError
from modelgit.pipeline.checking import checked
from modelgit.pipeline.keys import step_key
from modelgit.recipe.expanding import StatisticsInfo
from modelgit.recipe.pipeline import Pipeline, load_pipeline
from modelgit.train.data.splits import shuffled_keys
from modelgit.train.networks.registry import build_network

TARGET = """
[pipeline]
name = "p"
[model]
architecture = "mlp"
weights = "w.safetensors"
[data.target]
path = "target.zip"
held_out = "night"
image_size = 16
[data.other]
path = "other.zip"
image_size = 16
[train]
steps = 1
lr = 0.1
[[step]]
name = "base"
kind = "import"
[[step]]
name = "other"
kind = "train"
start = "base"
data = "other"
[[step]]
name = "a"
kind = "train"
start = "other"
data = "target"
"""
MERGED = '[[step]]\nname = "m"\nkind = "merge"\nheads = ["a", "b"]\n'
SECOND = '[[step]]\nname = "b"\nkind = "train"\nstart = "base"\ndata = '
MERGED_TWO = SECOND + '"target"\n' + MERGED


def png(value: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4), (value % 256, value // 256 % 256, value // 65536)).save(out, "PNG")
    return out.getvalue()


def write(path: Path, domains: tuple[str, ...], classes: tuple[str, ...], first: int) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for d, domain in enumerate(domains):
            for c, label in enumerate(classes):
                for i in range(10):
                    archive.writestr(f"{domain}/{label}/{i}.png", png(first + 1000 * d + 100 * c + i))


def look(tmp_path: Path, text: str, *overrides: str, first: int = 50_000) -> Pipeline:
    write(tmp_path / "target.zip", ("day", "night"), ("x", "y"), 0)
    write(tmp_path / "other.zip", ("only",), ("p", "q", "r"), first)
    (tmp_path / "w.safetensors").write_bytes(b"looked at later")
    (tmp_path / "p.toml").write_text(text)
    return checked(load_pipeline(tmp_path / "p.toml", overrides))


def test_a_sound_pipeline_passes_and_each_step_has_its_architecture(tmp_path: Path) -> None:
    text = TARGET.replace('kind = "import"\n', 'kind = "import"\narchitecture = "cnn"\n')
    assert {job.architecture for job in look(tmp_path, text).jobs} == {"cnn"}


def test_more_frozen_stages_than_there_are_are_refused(tmp_path: Path) -> None:
    stages = len(build_network("mlp", 2).stages())
    assert look(tmp_path, TARGET, f"train.frozen_stages={stages}").jobs
    with pytest.raises(RecipeError, match=rf"step '\w+': frozen_stages = 50: mlp.* has {stages} stages"):
        look(tmp_path, TARGET, "train.frozen_stages=50")


def test_a_training_without_one_of_its_classes_is_refused(tmp_path: Path) -> None:
    labels = ["xy"[i % 2] for i in range(24)] + ["rare"]
    (tmp_path / "t.csv").write_text("text,label\n" + "".join(f"word {i},{c}\n" for i, c in enumerate(labels)))
    (tmp_path / "w.safetensors").write_bytes(b"looked at later")
    text = TARGET.partition("[data.target]")[0] + (
        '[data.target]\npath = "t.csv"\n[train]\nsteps = 1\nlr = 0.1\n[[step]]\nname = "base"\nkind = "import"\n'
        '[[step]]\nname = "a"\nkind = "{kind}"\nstart = "base"\ndata = {{ name = "target", trial = {trial} }}\n'
    )
    lost = [trial for trial in range(12) if 24 in shuffled_keys(25, trial, 0)[:5]]
    for trial, kind in itertools.product(range(12), ("train", "probe")):
        (tmp_path / "p.toml").write_text(text.format(trial=trial, kind=kind))
        if trial in lost:
            with pytest.raises(DataError, match="no example of class 'rare' is left to train on"):
                checked(load_pipeline(tmp_path / "p.toml"))
        else:
            assert checked(load_pipeline(tmp_path / "p.toml")).jobs


def test_other_data_that_holds_the_targets_examples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"step 'a' would be tested on what 'other' has seen: 20 examples of target\.zip"
    ):
        look(tmp_path, TARGET, first=1000)  # those of the held-out domain
    assert look(tmp_path, TARGET, 'pipeline.leakage="allow"', first=1000).jobs


def test_other_data_that_is_called_after_the_target_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "target-v2.zip", ("only",), ("p", "q"), 70_000)
    with pytest.raises(DataError, match=r"target-v2\.zip is called after target\.zip"):
        look(tmp_path, TARGET, "data.other.path=target-v2.zip")


def test_a_start_that_was_trained_on_the_held_out_domain_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="20 examples of 'night'"):
        look(tmp_path, TARGET, "data.other.path=target.zip")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SECOND + '"other"\n' + MERGED, r"heads know different classes: a \(2\), b \(3\)"),
        (
            '[[step]]\nname = "base2"\nkind = "import"\narchitecture = "cnn"\n'
            + SECOND.replace('"base"', '"base2"') + '"target"\n' + MERGED,
            r"different architectures do not go together: a \(mlp\), b \(cnn\)",
        ),
        (SECOND + '"target"\nhead = "other"\n', "the head of 'other' knows other classes than the data"),
        (SECOND + '"target"\nevaluate = "other"\n', "evaluate: the version knows other classes"),
        ('[[step]]\nname = "base2"\nkind = "import"\narchitecture = "mlq"\n', "unknown architecture 'mlq'"),
        (
            SECOND + '{ name = "target", trial = 1 }\n' + MERGED + 'select = "greedy"\non = "target"\n',
            "on: 'b' was trained on examples that it would be judged by",
        ),
        (MERGED_TWO + 'on = "target"\n', "on: nothing is measured"),
        (MERGED_TWO + 'method = "fisher"\n', "step 'm': method fisher needs statistics of every version"),
        (MERGED_TWO + 'method = "fisher"\non = "target"\nselect = "greedy"\n', "not by fisher"),
        (MERGED_TWO + 'method = "ties"\nstatistics = {}\n', "statistics: method ties asks for none"),
        (MERGED_TWO + 'method = "fisher"\non = "other"\nstatistics = { labels = "data" }\n', "'a' knows other classes"),
        (
            SECOND + '"target"\n[step.train]\nbatch = 1\nobjective = "irm"\n',
            r"step 'b': batch = 1: expected at least 2, two examples of every training domain \(day\)",
        ),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        look(tmp_path, TARGET + text)


def test_statistics_are_of_training_domains_alone(tmp_path: Path) -> None:
    fisher = TARGET + MERGED_TWO + 'method = "fisher"\nevaluate = "target"\n'
    wanted = StatisticsInfo()
    pipeline = look(tmp_path, fisher + 'on = { name = "target", trial = 1 }\n')
    assert {job.name: job.statistics for job in pipeline.jobs if job.statistics} == {"m": wanted}
    assert {job.name for job in pipeline.jobs if job.validation_seen} == {"m"}  # another split's training examples
    assert not any(job.validation_seen for job in look(tmp_path, fisher + 'on = "target"\n').jobs)
    with pytest.raises(DataError, match="step 'm' would be tested on what 'm' has seen: 20 examples of 'night'"):
        look(tmp_path, fisher + 'on = { name = "target", held_out = "day" }\n')


def test_statistics_decide_the_key_of_a_merge_and_of_no_other(tmp_path: Path) -> None:
    def key(text: str) -> str:
        job = look(tmp_path, TARGET + MERGED_TWO + text).job("m")
        return step_key(job, ["one", "other"], None, "data" if job.on else None)

    fisher = 'method = "fisher"\non = "target"\n'
    told = {
        key(fisher),
        key(fisher + "statistics = { examples = 9 }\n"),
        key(fisher + 'statistics = { labels = "data" }\n'),
    }
    assert len(told) == 3 and key(fisher + 'statistics = { labels = "model" }\n') in told
    greedy = 'on = "target"\nselect = "greedy"\n'  # as they were before merges could have statistics
    assert key("").startswith("df1d3fbd0bf99dae") and key(greedy).startswith("f6c60eee7ad2cd2a")


def test_an_average_over_splits_has_no_validation_score(tmp_path: Path) -> None:
    pipeline = look(tmp_path, TARGET + SECOND + '{ name = "target", trial = 1 }\n' + MERGED + 'evaluate = "target"\n')
    assert {job.name for job in pipeline.jobs if job.validation_seen} == {"m"}


def test_runs_are_not_chosen_by_examples_that_were_trained_on(tmp_path: Path) -> None:
    text = TARGET + SECOND + '{ name = "target", trial = 1 }\n' + MERGED + 'evaluate = "target"\n'
    row = '[[report]]\nstrategy = "best"\ntitle = "Best"\nof = ["m"]\n'
    assert look(tmp_path, text + row).report
    with pytest.raises(RecipeError, match="'best': runs cannot be chosen by step 'm'"):
        look(tmp_path, text + row + 'pick = "best"\n')
    with pytest.raises(RecipeError, match="'best': runs cannot be chosen by step 'm'"):
        look(tmp_path, text + row.replace('["m"]', '["a"]') + 'pick = "best"\nby = ["m"]\n')


def test_too_few_examples_for_a_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelgitError, match="too few"):
        look(tmp_path, TARGET, "data.target.validation_fraction=0.01")


RANDOM = TARGET.replace('weights = "w.safetensors"', 'weights = "random"')


def test_untrained_weights_are_told_apart_by_their_seed(tmp_path: Path) -> None:
    stranger = '[[step]]\nname = "s/{twin}"\nkind = "import"\nweights = "random"\nseed = "{twin}"\n'
    stranger += "[variables]\ntwin = [1, 2]\n"
    seeds = {job.name: job.seed for job in look(tmp_path, RANDOM + stranger).jobs if job.kind == "import"}
    assert seeds == {"base": 0, "s/1": 1, "s/2": 2}
    jobs = look(tmp_path, RANDOM, "model.seed=7").jobs
    assert (jobs[0].seed, jobs[0].weights_file) == (7, "")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('weights = "none"', "expected 'pretrained' or 'random'"),
        ('weights = "random"\nfile = "w.safetensors"', "file does not go with weights or seed"),
        ('architecture = "transformers"', "'transformers' is built from the files of its version"),
        ('seed = "x"', r"seed = 'x': expected an integer"),
        ('architecture = "mlpp"', "unknown architecture 'mlpp'"),
    ],
)
def test_untrained_weights_that_there_are_none_of_are_refused(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        look(tmp_path, RANDOM.replace('kind = "import"\n', f'kind = "import"\n{line}\n'))


def test_an_untrained_version_has_no_head_to_measure(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="knows other classes"):
        look(tmp_path, RANDOM.replace('kind = "import"\n', 'kind = "import"\nevaluate = "target"\n'))
