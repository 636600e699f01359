"""A run on disk: all that a step changes, so that a run that was killed goes on with the same bits.

One safetensors file, replaced at once: nothing in it is executed, and a file that is not what it should be is left
aside and the run begins anew.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple
from os import urandom
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from modelgit.errors import StorageFull
from modelgit.train.fitting.averaging import Weights, copies
from modelgit.train.fitting.crews import divided_like, whole
from modelgit.train.fitting.loop import Point, Run, give, set_trained
from modelgit.train.fitting.norms import statistics_of
from modelgit.train.fitting.optimisers import optimiser_for

GENERATION = 2


class Resume:
    """The file of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, run: Run) -> None:
        """Writes the run down; all of a crew must ask, one writes. Raises StorageFull, the older file still there."""
        groups, values = run.average.state()
        tensors = {
            **numbered("parameter", copies(run.parameters)),
            **numbered("statistic", copies(statistics_of(run.norms))),
            **{f"average/{n}/{i}": tensor for n, group in enumerate(groups) for i, tensor in enumerate(group)},
            **numbered("best", run.best[1] if run.best else []),
            **{f"carried/{name}": tensor for name, tensor in run.carried.items()},
            **optimiser_tensors(run.optimiser),
            "draws": run.draws.get_state(),
        }
        about = {
            "generation": GENERATION,
            "step": run.step,
            "together": run.together,
            "groups": len(groups),
            "average": values,
            "best": run.best[0] if run.best else None,
            "best_step": run.best_step,
            "points": [list(astuple(point)) for point in run.points],
        }
        kept = {name: whole(t.detach()).cpu().contiguous() for name, t in tensors.items()}
        if run.crew.rank == 0:
            self._write(kept, json.dumps(about))

    def _write(self, tensors: dict[str, Tensor], about: str) -> None:
        scratch = self.path.with_name(f"{self.path.name}.{urandom(8).hex()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, scratch, {"run": about})
            scratch.replace(self.path)
        except (OSError, SafetensorError) as error:
            raise StorageFull(f"cannot save the run: {error}", hint="free some space; the last save is kept") from error
        finally:
            with suppress(OSError):
                scratch.unlink()

    def restore(self, run: Run) -> bool:
        """Sets the run to what the file holds; returns False, the run untouched, if there is none that fits."""
        try:
            with safe_open(self.path, "pt") as file:
                about = json.loads((file.metadata() or {})["run"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            if about["generation"] != GENERATION:
                return False
            return put(run, tensors, about)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError):
            return False

    def drop(self) -> None:
        """Removes the file; the run has ended."""
        with suppress(OSError):
            self.path.unlink()


def put(run: Run, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bool:
    """Sets a run to saved values, all of them or none."""
    device = run.task.labels.device
    found = {name: tensor if name == "draws" else tensor.to(device) for name, tensor in tensors.items()}
    values = [*collected("parameter", found), *collected("statistic", found)]
    if [value.shape for value in values] != [place.shape for place in run.changing]:
        return False
    trained = set_trained(run, int(about["step"]))
    optimiser = optimiser_for(trained, run.config)
    state = {n: parts(row, trained[n]) for n, row in optimiser_state(found).items()}
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    points = [Point(*row) for row in about["points"]]
    groups = [placed(run.parameters, collected(f"average/{n}", found)) for n in range(about["groups"])]
    run.average.restore(groups, about["average"])
    run.draws.set_state(found["draws"])
    give(run.changing, placed(run.changing, values))
    run.optimiser, run.step, run.points = optimiser, int(about["step"]), points
    run.together = int(about.get("together", 1))
    run.best = None if about["best"] is None else (float(about["best"]), placed(run.changing, collected("best", found)))
    run.best_step = int(about["best_step"])
    run.carried = {n.removeprefix("carried/"): tensor for n, tensor in found.items() if n.startswith("carried/")}
    return True


def placed(places: Sequence[Tensor], weights: Weights) -> Weights:
    """Returns weights as their places in a run are held: whole, or this process's part of each."""
    return [divided_like(place, tensor) for place, tensor in zip(places, weights, strict=bool(weights))]


def parts(row: Mapping[str, Tensor], parameter: Tensor) -> dict[str, Tensor]:
    """Returns the moments of a parameter as it is held; the count of steps is whole everywhere."""
    return {key: divided_like(parameter, value) if value.dim() else value for key, value in row.items()}


def numbered(prefix: str, weights: Weights) -> dict[str, Tensor]:
    """Returns tensors by prefix and number."""
    return {f"{prefix}/{n}": tensor for n, tensor in enumerate(weights)}


def collected(prefix: str, tensors: Mapping[str, Tensor]) -> Weights:
    """Returns the tensors of a prefix, in order."""
    found = list[Tensor]()
    while (name := f"{prefix}/{len(found)}") in tensors:
        found.append(tensors[name])
    return found


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns the moments and step counts of an optimiser."""
    state = optimiser.state_dict()["state"]
    return {
        f"optimiser/{n}/{key}": value
        for n, row in state.items()
        for key, value in row.items()
        if isinstance(value, Tensor)
    }


def optimiser_state(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """Returns what `optimiser_tensors` wrote, as the optimiser has it."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "optimiser":
            number, _, key = rest.partition("/")
            state.setdefault(int(number), {})[key] = tensor
    return state
