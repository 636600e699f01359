"""One process of a crew, for tests: `crew_member.py JSON`, with RANK and WORLD_SIZE in its environment."""

import dataclasses
import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from modelgit.events import Advanced
from modelgit.recipe.binding import bind
from modelgit.train.config import DataConfig, FineTune
from modelgit.train.fitting.crews import Crew, join, leave
from modelgit.train.task import Workbench, fine_tune


def main() -> None:
    """Trains as told, each run a second time from where it was saved last; writes weights and curves."""
    told = json.loads(sys.argv[1])
    notes: list[str] = []
    device = told.get("device", "cpu")
    bench = Workbench(device, listener=lambda event: notes.append(event.note) if isinstance(event, Advanced) else None)
    rank = int(os.environ["RANK"])
    bench.crew = Crew(rank, int(os.environ["WORLD_SIZE"]), local=rank)
    join(bench.crew, told["place"], bench.device)
    data, folder = bind(DataConfig, told["data"], "data"), Path(told["out"])
    for name, table in told["configs"].items():
        bench.resume = folder / f"{name}.run"
        config = bind(FineTune, table, "train")
        for again in ("", ".again"):
            result = fine_tune(bench, load_file(told["init"]), "cnn", data, config, fresh_head=True)
            save_file(result.state, folder / f"{name}{again}.{bench.crew.rank}.safetensors")
        curve = [dataclasses.astuple(point) for point in result.history]
        told_of = [curve, result.scores.val_accuracy, notes.count("resumed")]
        (folder / f"{name}.{bench.crew.rank}.json").write_text(json.dumps(told_of))
        notes.clear()
    leave()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
