"""Fine-tuning, probing and scoring as single calls: state in, state out.

A `Workbench` keeps what many calls share: the device, the data sets, the features behind frozen stages.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from modelgit.errors import DataError, RecipeError, TrainingError
from modelgit.events import Listener, Noted, ignore
from modelgit.train.choices import Mixup
from modelgit.train.config import Augment, DataConfig, FineTune, seed_hash
from modelgit.train.data.dataset import Dataset, Integers
from modelgit.train.data.loading import load_dataset
from modelgit.train.data.splits import Split, split
from modelgit.train.evaluate import Outputs, Scored, Scores, average_outputs, made_of, mix_outputs
from modelgit.train.feature_cache import features, features_key
from modelgit.train.features import NOTHING, Features, Place, Wanted, run_stages
from modelgit.train.fitting.beginnings import fallen, head_at, refuse_small_batch, told_fallen, validated_start
from modelgit.train.fitting.crews import SOLO, whole
from modelgit.train.fitting.loop import Member, Point, Run, Task, Validation, fit, give, stands_as_looked_at, start
from modelgit.train.fitting.passes import freeze, scored_by
from modelgit.train.fitting.probe import linear_probe
from modelgit.train.fitting.resuming import Resume
from modelgit.train.fitting.together import COMMON, fit_together, go_together
from modelgit.train.memory import NETWORK, PROBE, SCORING, TOGETHER, VALIDATING, memory_for, step_keys
from modelgit.train.networks.lora import adapt, adapter_of, keeps_turned
from modelgit.train.networks.network import Design, Network, check_stages, head_tensors
from modelgit.train.networks.registry import build_network

KEPT = 4  # how many data sets' features a workbench keeps


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The whole state dict after training (CPU), or the adapter's, its curve and scores, and what it was trained on."""

    state: dict[str, Tensor]
    history: tuple[Point, ...]
    scores: Scores
    classes: tuple[str, ...]
    head: tuple[str, str]
    data_digest: str
    device: str
    seconds: float
    raw: dict[str, Tensor] | None = None  # the weights before averaging, where they are wanted
    trained_on: Mapping[str, int] = field(default_factory=dict)  # examples of each domain
    together: int = 1  # how many runs shared passes
    fell: bool = False  # its validation accuracy is below the start's
    kept_step: int | None = None  # of the weights that validated best, where these are kept
    turned: bool = False  # whether an adapter's layers keep their matrices turned


@dataclass(frozen=True, slots=True)
class Prepared:
    """A data set split, with its features."""

    dataset: Dataset
    split: Split
    features: Features
    labels: Tensor


class Workbench:
    """A device, a folder for features (None: keep them in memory), and the data sets in use."""

    def __init__(
        self, device: str = "auto", cache: Path | None = None, threads: int = 1, listener: Listener = ignore
    ) -> None:
        torch.set_num_threads(threads)
        self.device = choose_device(device)
        self.listener = listener
        self.resume: Path | None = None  # where the next run is saved, and goes on from
        self.crew = SOLO  # the processes that carry out every run together
        self._cache = cache
        self._datasets: dict[DataConfig, tuple[Dataset, Split]] = {}
        self._features: dict[str, Features] = {}
        self._told = set[str]()  # what was said of data sets

    def dataset(self, config: DataConfig) -> tuple[Dataset, Split]:
        """Returns the data set and its split, loaded once."""
        if config not in self._datasets:
            dataset = load_dataset(config)
            self._datasets[config] = dataset, split(dataset, config)
            for note in dataset.notes:
                self._tell_once(note)
        return self._datasets[config]

    def _tell_once(self, note: str) -> None:
        if note not in self._told:
            self.listener(Noted(note))
            self._told.add(note)

    def prepare(self, network: Network, data: DataConfig, config: FineTune) -> Prepared:
        """Returns the data as `config` trains on it: every image in use, and views of the training images.

        Raises:
            RecipeError: more stages are frozen than there are.
        """
        check_stages(network, config.frozen_stages)
        dataset, parts = self.dataset(data)
        train = np.unique(np.concatenate(list(parts.train.values())))
        clean = np.union1d(train, evaluated(parts))
        views = config.views if dataset.kind == "images" else 0  # nothing else has views
        wanted = Wanted(clean, train, views, config.augment)
        found = self._kept(network, dataset, wanted, config.frozen_stages)
        return Prepared(dataset, parts, found, self._labels(dataset))

    def prepare_scoring(self, network: Network, data: DataConfig, stages: int) -> Prepared:
        """Returns the images that scores are measured on, behind the network's first `stages` stages."""
        dataset, parts = self.dataset(data)
        wanted = Wanted(evaluated(parts), NOTHING, 0, Augment())
        return Prepared(dataset, parts, self._kept(network, dataset, wanted, stages), self._labels(dataset))

    def _labels(self, dataset: Dataset) -> Tensor:
        return torch.from_numpy(dataset.labels).to(self.device)

    def _kept(self, network: Network, dataset: Dataset, wanted: Wanted, stages: int) -> Features:
        """Returns features, the last few from memory."""
        key = features_key(network, dataset, wanted, stages)
        if key not in self._features:
            place = Place(stages, self.device, self._cache, self.listener)
            found = features(network, dataset, wanted, place)
            while len(self._features) >= KEPT:
                self._features.pop(next(iter(self._features)))
            self._features[key] = found
        return self._features[key]


def evaluated(parts: Split) -> Integers:
    """Returns the images that scores are measured on."""
    return np.unique(np.concatenate([*parts.validation.values(), parts.test]))


def choose_device(name: str) -> torch.device:
    """Returns the device of that name; `auto` is CUDA where there is a GPU.

    Raises:
        TrainingError: CUDA was asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise TrainingError("CUDA was asked for, and there is no GPU that PyTorch can use", hint="--device cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise TrainingError(f"unknown device '{name}'", hint="--device auto, cpu or cuda") from error


def gpu_count(device: torch.device) -> int:
    """Returns how many GPUs a device may be: all where it is `cuda` without a number."""
    return torch.cuda.device_count() if device.type == "cuda" and device.index is None else 0


def loaded(bench: Workbench, design: Design | str, state: Mapping[str, Tensor], classes: int) -> Network:
    """Returns the network with the state's weights; a head of other classes is left out (zeros stand there).

    Raises:
        DataError: the state is of another architecture, naming the first tensor that does not fit.
    """
    name = design if isinstance(design, str) else design.architecture
    with memory_for(f"{name} on {bench.device}", NETWORK):
        network = build_network(design, classes)
        fill(network, name, state)
        network.to(bench.device)
    network.eval()
    return network


def fill(network: Network, name: str, state: Mapping[str, Tensor]) -> None:
    """Gives a network called `name` the state's weights, as `loaded` does. Raises DataError."""
    wanted = network.state_dict()
    head = head_tensors(network)
    fitting = {key: tensor for key, tensor in state.items() if key not in head or tensor.shape == wanted[key].shape}
    filled = {**{key: torch.zeros_like(wanted[key]) for key in head}, **fitting}
    for key, tensor in wanted.items():
        got = filled.get(key)
        if got is None or got.shape != tensor.shape:
            shape = tuple(got.shape) if got is not None else "none"
            raise DataError(f"tensor '{key}': {name} expects shape {tuple(tensor.shape)}, got {shape}")
    extra = [key for key in filled if key not in wanted]
    if extra and not network.carries:
        raise DataError(f"tensor '{extra[0]}': {name} has none of that name")
    network.load_state_dict({key: filled[key] for key in wanted})


def probe(
    bench: Workbench, init: Mapping[str, Tensor], design: Design | str, data: DataConfig, config: FineTune
) -> TrainResult:
    """Returns the state with a head learned on its own features; everything else is bit for bit as it was."""
    began = time.monotonic()
    dataset, _ = bench.dataset(data)
    network = loaded(bench, design, init, len(dataset.classes))
    ready = bench.prepare(network, data, config)
    set_head(network, ready, config)
    scores = evaluate(scored_by(network, config.frozen_stages), ready).scores()
    head = dict(zip(head_tensors(network), head_of(network), strict=True))
    state = {name: t.contiguous() for name, t in {**init, **head}.items()}
    seconds = time.monotonic() - began
    names = head_tensors(network)
    found = TrainResult(state, (), scores, dataset.classes, names, dataset.digest, str(bench.device), seconds)
    return replace(found, trained_on=counts(ready.split))


def counts(parts: Split) -> dict[str, int]:
    """Returns how many examples of each domain are trained on."""
    return {domain: len(indices) for domain, indices in parts.train.items()}


def set_head(network: Network, ready: Prepared, config: FineTune) -> None:
    """Gives the network the head that linear probing finds."""
    with memory_for(f"the linear probe on {Path(ready.dataset.path).name}", PROBE):
        weight, bias = probed(network, ready, config)
    names = head_tensors(network)
    network.load_state_dict({**network.state_dict(), names[0]: weight, names[1]: bias})


def probed(network: Network, ready: Prepared, config: FineTune) -> tuple[Tensor, Tensor]:
    """Returns weight and bias of the head that linear probing finds."""
    indices = np.concatenate(list(ready.split.train.values()))
    rows = made_of(lambda x: run_stages(network, x, config.frozen_stages, None), ready.features, indices)
    return linear_probe(rows, ready.labels[indices], len(ready.dataset.classes))


def draw_head(network: Network, seed: int) -> None:
    """Gives the network a random head: uniform within 1 / sqrt(features), as PyTorch begins linear layers."""
    draws = torch.Generator().manual_seed(seed_hash("head", seed))
    bound = network.feature_size**-0.5
    with torch.no_grad():
        for parameter in network.get_submodule(network.head_name).parameters():
            parameter.copy_(bound * (2 * torch.rand(parameter.shape, generator=draws) - 1))


def head_of(network: Network) -> tuple[Tensor, Tensor]:
    """Returns weight and bias of the head, on the CPU."""
    state = network.state_dict()
    weight, bias = (state[name].detach().cpu().contiguous() for name in head_tensors(network))
    return weight, bias


@dataclass(frozen=True, slots=True)
class Start:
    """What one of several fine-tunings begins with, who is told of it, and the file it goes on from, if any."""

    init: Mapping[str, Tensor]
    config: FineTune
    fresh_head: bool
    listener: Listener = ignore
    resume: Path | None = None


@dataclass(frozen=True, slots=True)
class Fitting:
    """A fine-tuning that has been set up."""

    network: Network
    ready: Prepared
    member: Member
    init: Mapping[str, Tensor]
    head: Mapping[str, Tensor]  # that it began with
    began: float
    looked: list[Outputs]  # what the last validation of it saw


def fine_tune(
    bench: Workbench,
    init: Mapping[str, Tensor],
    design: Design | str,
    data: DataConfig,
    config: FineTune,
    *,
    fresh_head: bool,
) -> TrainResult:
    """Returns the state after fine-tuning `init` on `data`.

    The run is saved in the bench's `resume` file at every evaluation, and goes on from what that holds.

    With `fresh_head` a head is first learned by linear probing for this task (LP-FT, Kumar et al. 2022,
    arXiv:2202.10054), or drawn, as `new_head` says; without, `init` must hold a head for the data's classes.

    Raises:
        DataError: the data does not fit. TrainingError: the run went wrong.
    """
    with memory_for(f"training on {Path(data.path).stem}", step_keys(config)):
        fitting = set_up(bench, design, data, Start(init, config, fresh_head, bench.listener, bench.resume))
        fit(fitting.member)
        return result_of(bench, fitting)


def fine_tune_many(
    bench: Workbench, design: Design | str, data: DataConfig, starts: Sequence[Start]
) -> list[TrainResult]:
    """Returns what `fine_tune` would for each start, the runs sharing their passes through the network.

    The same draws, up to rounding the same weights: products of stacked matrices add in another order.

    Raises:
        DataError, TrainingError: as `fine_tune`, or the settings of two runs ask for different passes.
    """
    for start_ in starts:
        if not go_together(starts[0].config, start_.config):
            raise TrainingError("these runs cannot go together", hint=f"equal in all: {', '.join(COMMON)}")
    with memory_for(f"{len(starts)} trainings together on {Path(data.path).stem}", TOGETHER):
        fittings = [set_up(bench, design, data, start_) for start_ in starts]
        fit_together([fitting.member for fitting in fittings])
        return [result_of(bench, fitting) for fitting in fittings]


def set_up(bench: Workbench, design: Design | str, data: DataConfig, given: Start) -> Fitting:
    """Returns a fine-tuning that is ready to go on from where it was saved, or to begin."""
    began, config = time.monotonic(), given.config
    dataset, parts = bench.dataset(data)
    refuse_small_batch(config, list(parts.train))
    network = loaded(bench, design, given.init, len(dataset.classes))
    check_head(network, given.init, dataset, given.fresh_head)
    ready = bench.prepare(network, data, config)
    refuse_mixing(ready, config)
    freeze(network, config.frozen_stages)
    if config.lora is not None:
        adapt(network, config.lora, config.frozen_stages, config.seed)
    if given.fresh_head and config.new_head == "probe":
        set_head(network, ready, config)
    elif given.fresh_head:
        draw_head(network, config.seed)
    task = Task(f"training on {Path(dataset.path).stem}", ready.features, ready.labels, ready.split.train)

    looked = list[Outputs]()

    def validate() -> Validation:
        found = evaluate(scored_in(run), ready, test=False)
        looked[:] = [found]
        scores = found.scores()
        return Validation(scores.val_accuracy, found.val_loss, {d: a.value for d, a in scores.validation.items()})

    head = head_at(network)
    run = start(network, task, config, bench.crew)
    saved = Resume(given.resume) if given.resume is not None else None
    if saved is not None:
        saved.restore(run)
    member = Member(run, validate, given.listener, saved.save if saved is not None else forget)
    return Fitting(network, ready, member, given.init, head, began, looked)


def result_of(bench: Workbench, fitting: Fitting) -> TrainResult:
    """Returns what a fine-tuning that is over came to."""
    network, run, dataset = fitting.network, fitting.member.run, fitting.ready.dataset
    known = fitting.looked[0] if fitting.looked and stands_as_looked_at(run) else None
    scores = evaluate(scored_in(run), fitting.ready, known=known).scores()
    state, raw = trained_state(fitting), None
    if run.config.commit_raw and run.raw is not None:
        give(run.changing, run.raw)
        raw = trained_state(fitting)
    names, seconds = head_tensors(network), time.monotonic() - fitting.began
    history, device = validated_start(fitting.member, fitting.init, fitting.head), str(bench.device)
    if fell := fallen(history, scores):
        fitting.member.listener(Noted(f"{run.task.name}: {told_fallen(run.config, history, scores)}"))
    found = TrainResult(state, history, scores, dataset.classes, names, dataset.digest, device, seconds)
    turned = keeps_turned(network)
    found = replace(found, together=run.together, kept_step=run.kept_step, fell=fell, turned=turned)
    return replace(found, raw=raw, trained_on=counts(fitting.ready.split))


def refuse_mixing(ready: Prepared, config: FineTune) -> None:
    """Raises RecipeError where inputs would be mixed that are sequences: the mean of two texts is none."""
    if ready.features.padded and isinstance(config.objective, Mixup):
        hint = "another objective, or freeze all stages: then what is mixed are features"
        raise RecipeError(f"mixup mixes inputs, and {ready.dataset.path} holds texts", hint=hint)


def forget(_run: Run) -> None:
    """Saves nothing."""


def trained_state(fitting: Fitting) -> dict[str, Tensor]:
    """Returns a copy of what a fine-tuning has made: all weights, or an adapter."""
    if fitting.member.run.config.lora is not None:
        return adapter_of(fitting.network)
    return state_of(fitting.network, fitting.init)


def state_of(network: Network, init: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a copy of the network's state, on the CPU, in the types of the start, with what it carries along."""
    own = {
        name: whole(t.detach()).to("cpu", init[name].dtype if name in init else t.dtype, copy=True).contiguous()
        for name, t in network.state_dict().items()
    }
    return {**{name: tensor for name, tensor in init.items() if name not in own}, **own}


def check_head(network: Network, init: Mapping[str, Tensor], dataset: Dataset, fresh_head: bool) -> None:
    """Raises DataError if there must be a head for the classes and is none."""
    weight = head_tensors(network)[0]
    got = tuple(init[weight].shape) if weight in init else None
    expected = (len(dataset.classes), network.feature_size)
    if not fresh_head and got != expected:
        hint = "name a step whose head to take: head = …"
        raise DataError(f"head '{weight}': {dataset.path} needs shape {expected}, the start has {got}", hint=hint)


def scored_in(run: Run) -> Scored:
    """Returns what gives class scores with the weights of a run, by all that carry it out."""
    if run.crew.size == 1:
        return scored_by(run.network, run.config.frozen_stages)
    return lambda x: run.passes(x, None)[1]


def evaluate(scored: Scored, ready: Prepared, *, test: bool = True, known: Outputs | None = None) -> Outputs:
    """Returns the network's logits on the validation splits (`known` are not asked anew) and with `test` held out."""

    def on(indices: Integers) -> tuple[Tensor, Tensor]:
        return made_of(scored, ready.features, indices), ready.labels[indices]

    with memory_for(f"scoring on {Path(ready.dataset.path).name}", VALIDATING):
        held_out = on(ready.split.test) if test and len(ready.split.test) else None
        inside = known.validation if known else {domain: on(i) for domain, i in ready.split.validation.items()}
        return Outputs(inside, held_out)


@dataclass(frozen=True, slots=True)
class Model:
    """What a version is: what its network is built from, and the classes its head knows."""

    design: Design | str
    classes: tuple[str, ...]


def score(
    bench: Workbench, state: Mapping[str, Tensor], model: Model, data: DataConfig, frozen_stages: int = 0
) -> Scores:
    """Returns the scores of a version.

    With `frozen_stages` what the first stages make of the images is taken from the cache, or put there.

    Raises:
        DataError: the data set's classes are others.
    """
    return outputs(bench, state, model, data, frozen_stages).scores()


def outputs(
    bench: Workbench, state: Mapping[str, Tensor], model: Model, data: DataConfig, frozen_stages: int = 0
) -> Outputs:
    """Returns the logits behind `score`, image by image, in the order of the split.

    Raises:
        DataError: the data set's classes are others.
    """
    dataset, _ = bench.dataset(data)
    check_classes(model, dataset)
    with memory_for(f"scoring on {Path(data.path).name}", SCORING):
        network = loaded(bench, model.design, state, len(dataset.classes))
        return evaluate(scored_by(network, frozen_stages), bench.prepare_scoring(network, data, frozen_stages))


def score_ensemble(
    bench: Workbench,
    states: Iterable[Mapping[str, Tensor]],
    model: Model,
    data: DataConfig,
    frozen_stages: int = 0,
) -> Scores:
    """Returns the scores of the mean of the states' logits: as many passes as there are states.

    Raises:
        DataError: there are no states, or the data set's classes are others.
    """
    members = [outputs(bench, state, model, data, frozen_stages) for state in states]
    if not members:
        raise DataError("an ensemble of no versions", hint="name at least one")
    return average_outputs(members).scores()


def score_mixture(
    bench: Workbench,
    states: Iterable[Mapping[str, Tensor]],
    model: Model,
    data: DataConfig,
    how: tuple[Sequence[float], int],
) -> Scores:
    """Returns the scores of the states' class probabilities mixed by weights; `how` has these, and frozen stages.

    Raises:
        DataError: the data set's classes are others.
    """
    weights, frozen_stages = how
    return mix_outputs([outputs(bench, state, model, data, frozen_stages) for state in states], weights).scores()


def check_classes(model: Model, dataset: Dataset) -> None:
    """Raises DataError unless the model knows exactly the data set's classes."""
    if model.classes != dataset.classes:
        known = ", ".join(model.classes) or "none"
        raise DataError(f"{dataset.path}: classes {', '.join(dataset.classes)}; the model knows {known}")
