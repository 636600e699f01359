"""One process of a crew, for tests: `crew_member.py JSON`, under torchrun, or with RANK and WORLD_SIZE of its own."""

import dataclasses
import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from modelgit.recipe.binding import bind
from modelgit.train.config import DataConfig, FineTune
from modelgit.train.fitting.crews import Crew, join, leave
from modelgit.train.task import Workbench, fine_tune


def main() -> None:
    """Trains as told; the first process writes the weights and the curve."""
    told = json.loads(sys.argv[1])
    crew = Crew(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    bench = Workbench("cpu")
    join(crew, told.get("place", "env://"), bench.device)
    bench.crew = crew
    data, folder = bind(DataConfig, told["data"], "data"), Path(told["out"])
    for name, table in told["configs"].items():
        bench.resume = folder / f"{name}.run" if told.get("resume") else None
        config = bind(FineTune, table, "train")
        result = fine_tune(bench, load_file(told["init"]), told["architecture"], data, config, fresh_head=True)
        save_file(result.state, folder / f"{name}.{crew.rank}.safetensors")
        curve = [dataclasses.astuple(point) for point in result.history]
        (folder / f"{name}.{crew.rank}.json").write_text(json.dumps([curve, result.scores.val_accuracy]))
    leave()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
