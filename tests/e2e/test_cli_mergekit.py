"""mergekit's configuration files: what they give there is what they give here, or they are refused by name."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from telling import Tell, teller

import modelgit

DATA = Path(__file__).parents[1] / "data"
TOLERANCE = 3e-6
AWAY = {"model.norm.weight"}  # models disagree there: the reference walks away from them, we stay at the base
SAME = [
    "linear",
    "linear_unnormalized",
    "linear_negative",
    "task_arithmetic",
    "task_arithmetic_lambda",
    "task_arithmetic_normalized",
    "ties",
    "ties_unnormalized",
    "ties_rescale",
    "ties_gradients",
    "ties_density02_equal",
    "breadcrumbs",
    "breadcrumbs_ties",
    "breadcrumbs_gradients",
    "sce",
    "sce_all",
    "model_stock",
    "karcher",
    "multislerp",
    "multislerp_base",
    "slerp_03",
    "slerp_gradient",
    "nuslerp",
    "nuslerp_base",
    "nuslerp_columnwise",
    "nuslerp_rowwise",
]


@pytest.fixture
def tell(capfd: pytest.CaptureFixture[str]) -> Tell:
    return teller(capfd)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference model as `main` and `base`, its fine-tunes as `ft0`, `ft1`, `ft2`."""
    place = tmp_path_factory.mktemp("template") / "models"
    repo = modelgit.Repository.init(place)
    repo.commit(load_file(DATA / "merge" / "base.safetensors"), message="base", branch="main", parents=[])
    for name in ("ft0", "ft1", "ft2"):
        repo.commit(load_file(DATA / "merge" / f"{name}.safetensors"), message=name, branch=name, parents=["main"])
    return place


@pytest.fixture
def models(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(shutil.copytree(template, tmp_path / "models"))
    return tmp_path / "models"


@pytest.mark.parametrize("name", SAME)
def test_the_same_numbers_as_there(models: Path, tell: Tell, name: str) -> None:
    made = tell("merge", "--from-mergekit", str(DATA / "mergekit" / f"{name}.yml"), "--model", "base=main", "--no-ff")
    wanted, merged = load_file(DATA / "merge" / f"{name}.safetensors"), load_file("model.safetensors")
    away = AWAY if name == "model_stock" else set()
    far = {k: float(np.abs(merged[k] - v).max() / np.abs(v).max()) for k, v in wanted.items() if k not in away}
    assert max(far.values()) <= TOLERANCE, far
    assert any(note.startswith("dtype:") for note in made["notes"])
    assert tell("verify", "--rerun")["tensors"] == len(wanted)


def test_what_takes_part_is_what_the_file_names(models: Path, tell: Tell) -> None:
    tell("switch", "ft2")  # which the file does not name
    made = tell("merge", "--from-mergekit", str(DATA / "mergekit" / "slerp_03.yml"))
    assert [(head["name"], head["weight"]) for head in made["heads"]] == [("ft0", 0.7), ("ft1", 0.3)]
    wanted, merged = load_file(DATA / "merge" / "slerp_03.safetensors"), load_file("model.safetensors")
    assert all(np.allclose(merged[key], value, rtol=0, atol=1e-6) for key, value in wanted.items())
    assert tell("verify", "--rerun")["tensors"] == len(wanted)


def test_weights_differ_between_layers(models: Path, tell: Tell) -> None:
    text = "merge_method: linear\nmodels:\n- model: ft0\n  parameters: {weight: [1, 0]}\n- model: ft1\n"
    Path("gradient.yml").write_text(
        f"{text}  parameters:\n    weight:\n    - {{filter: norm, value: 3}}\n    - value: [0, 1]\n"
    )
    tell("merge", "--from-mergekit", "gradient.yml", "--no-ff")
    merged, one, two = (
        load_file(path)
        for path in ("model.safetensors", DATA / "merge" / "ft0.safetensors", DATA / "merge" / "ft1.safetensors")
    )
    shares = {"model.layers.0.mlp.up_proj.weight": 0, "model.layers.1.mlp.up_proj.weight": 1, "lm_head.weight": 0}
    for name, share in {**shares, "model.norm.weight": 0.75, "model.layers.1.input_layernorm.weight": 1}.items():
        assert np.allclose(merged[name], (1 - share) * one[name] + share * two[name], rtol=0, atol=1e-6), name
    assert tell("verify", "--rerun")["tensors"] == len(merged)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nearswap", "merge_method 'nearswap' is not to be had here"),
        ("dare_ties_norescale", "rescale: False is not to be had here"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(models: Path, tell: Tell, name: str, expected: str) -> None:
    before = tell("status")["head"]
    assert expected in tell("merge", "--from-mergekit", str(DATA / "mergekit" / f"{name}.yml"), code=2)["message"]
    assert tell("status")["head"] == before


SLICED = (
    "merge_method: linear\nslices:\n- sources:\n"
    "  - {{model: ft0, layer_range: {}}}\n  - {{model: ft1, layer_range: {}}}\n"
)
TWO = "models:\n- model: ft0\n- model: ft1\n"


@pytest.mark.parametrize(
    ("text", "code", "expected"),
    [
        ("[1, 2]", 12, "expected a table of settings, got list"),
        ("a: [", 12, "not YAML"),
        ("merge_method: linear\n", 12, "models: expected a list"),
        (f"merge_method: linear\nmodells: 1\n{TWO}", 2, "unknown setting 'modells'"),
        (f"merge_method: linear\n{TWO}- model: ft0\n", 2, "model 'ft0' is listed twice"),
        (f"merge_method: linear\n{TWO}- model: org/unknown\n", 2, "model 'org/unknown' is no revision here"),
        (f"merge_method: linear\n{TWO}- model: ft2+lora\n", 2, "applies an adapter first"),
        (f"merge_method: ties\n{TWO}", 2, "ties needs a base_model"),
        (f"merge_method: ties\nbase_model: main\nparameters: {{normalize: [1]}}\n{TWO}", 2, "a gradient over layers"),
        (f"merge_method: ties\nbase_model: main\nparameters: {{dense: 1}}\n{TWO}", 2, "parameter 'dense'"),
        (f"merge_method: linear\nparameters: {{weight: heavy}}\n{TWO}", 2, "weight: expected a number, got 'heavy'"),
        (f"merge_method: slerp\nbase_model: ft0\nparameters: {{t: 2}}\n{TWO}", 2, "t: expected one number from 0 to 1"),
        (
            f"merge_method: slerp\nbase_model: main\nparameters: {{t: 0.5}}\n{TWO}",
            2,
            "expected two models, one of them",
        ),
        (f"merge_method: ties\nbase_model: main\nparameters: {{density: [1, 2]}}\n{TWO}", 2, "from 0 to 1, got 2"),
        (
            f"merge_method: linear\nparameters: {{weight: [{{filter: mlp, value: 1}}]}}\n{TWO}",
            2,
            "no filter matches tensor",
        ),
        (
            f"merge_method: linear\nparameters: {{weight: &a [{{value: *a}}]}}\n{TWO}",
            2,
            "expected numbers, or a list of",
        ),
        (SLICED.format("[0, 3]", "[0, 3]"), 2, "expected a layer_range of all layers, [0, 2], got [0, 3]"),
        (SLICED.format("[0, 2]", "[0, 1]"), 2, "slices and modules"),
        (SLICED.format("[1, 2]", "[1, 2]"), 2, "slices and modules"),
        (SLICED.format("[0, two]", "[0, two]"), 2, "slices and modules"),
        ("merge_method: linear\nslices: [{sources: 1}]\n", 12, "slices: expected sources, a list of"),
        ("!!python/object/apply:os.system [echo]", 12, "not YAML"),
        (f"merge_method: linear\nwhen: 2026-99-99\n{TWO}", 12, "not YAML"),
        (f"merge_method: [linear]\n{TWO}", 12, "merge_method: expected a name, got a list"),
        ('merge_method: linear\nmodels:\n- model: "ft0\\0x"\n', 12, "models: model: expected a name"),
        (f"merge_method: linear\nparameters: [1]\n{TWO}", 12, "parameters: expected a table, got a list"),
        (f"merge_method: linear\nparameters: {{weight: .nan}}\n{TWO}", 2, "weight: expected a number, got nan"),
        (f"merge_method: linear\nparameters: {{weight: {'9' * 400}}}\n{TWO}", 2, "weight: expected a number"),
        ("merge_method: linear\nmodels:\n- model: {model: ft0, lora: ft1}\n", 2, "a model put together"),
        ("merge_method: linear\nmodels:\n- model: ft0\n  layer_range: [0, 1]\n", 2, "'layer_range' is not to be had"),
        (f"merge_method: slerp\nbase_model: ft0\nparameters: {{t: 0.5, filter: mlp}}\n{TWO}", 2, "parameter 'filter'"),
        (f"merge_method: model_stock\nbase_model: main\nparameters: {{filter_wise: x}}\n{TWO}", 2, "true or false"),
        (
            "merge_method: ties\nbase_model: main\nmodels:\n- model: ft0\n  parameters: {lambda: 0.3}\n- model: ft1\n",
            2,
            "'lambda' holds for all models",
        ),
        (
            "merge_method: linear\nbase_model: main\nmodels:\n- model: ft0\n  parameters: {weight: 1}\n",
            2,
            "base_model main takes part in linear, and has no weight",
        ),
    ],
)
def test_bad_files_are_told(models: Path, tell: Tell, text: str, code: int, expected: str) -> None:
    (models / "c.yml").write_text(text)
    assert expected in tell("merge", "--from-mergekit", "c.yml", code=code)["message"]


def test_names_are_found_and_options_do_not_mix(models: Path, tell: Tell) -> None:
    text = "merge_method: ties\nbase_model: org/main\nmodels:\n- model: org/main\n- model: some/ft0\n- model: x/y\n"
    (models / "c.yml").write_text(text)
    assert "'x/y' is no revision" in tell("merge", "--from-mergekit", "c.yml", code=2)["message"]
    made = tell("merge", "--from-mergekit", "c.yml", "--model", "x/y=ft1", "-n")
    assert ([head["name"] for head in made["heads"]], made["settings"]["density"]) == (["ft0", "ft1"], 1.0)
    for words in (("ft2",), ("--method", "ties"), ("--weights", "1,2"), ("--base", "main"), ("--set", "density=1")):
        assert "says what is merged" in tell("merge", "--from-mergekit", "c.yml", *words, code=2)["message"]
    assert "c2.yml" in tell("merge", "--from-mergekit", "c2.yml", code=2)["message"]


@pytest.mark.parametrize(
    ("text", "same"),
    [
        (f"merge_method: karcher\nbase_model: main\n{TWO}", f"merge_method: karcher\n{TWO}- model: main\n"),
        (
            f"merge_method: linear\nbase_model: main\nparameters: {{weight: 1.0}}\n{TWO}",
            f"merge_method: linear\nparameters: {{weight: 1.0}}\n{TWO}- model: main\n",
        ),
        (
            f"merge_method: breadcrumbs\nbase_model: main\nparameters: {{weight: 5e-1}}\n{TWO}",
            f"merge_method: task_arithmetic\nbase_model: main\nparameters: {{weight: 0.5}}\n{TWO}",
        ),
    ],
    ids=["karcher averages its base_model too", "so does linear", "breadcrumbs drops nothing at its default density"],
)
def test_what_mergekit_takes_for_granted(models: Path, tell: Tell, text: str, same: str) -> None:
    found = []
    for number, configuration in enumerate((text, same)):
        (models / "c.yml").write_text(configuration)
        tell("switch", "-c", f"work{number}", "main")
        tell("merge", "--from-mergekit", "c.yml")
        found.append(load_file("model.safetensors"))
    for name, values in found[0].items():
        np.testing.assert_allclose(values, found[1][name], rtol=0, atol=1e-7)


def test_a_file_without_end_is_read_to_a_bound(models: Path, tell: Tell) -> None:
    assert "expected at most" in tell("merge", "--from-mergekit", "/dev/zero", code=12)["message"]
