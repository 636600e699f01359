"""The training loop beside a loop written by hand, and beside the Trainer of transformers: speed, memory, start.

    python -m benchmarks.train_speed [pictures|texts|small] [--rounds 8] [--steps 10] [--trainer]
        [--precision fp32|tf32|bf16] [--together 8 [--processes 2]] [--device cuda] [--no-compile]
        [--peak-tflops 989.4] [--starts 3] [--out build/bench-train.json]

One network, the same examples, batch, precision and optimiser for all. `pictures` is the demo's EfficientNet-Lite0
behind nine frozen stages, `texts` MiniLM behind its embeddings and three layers, `small` a perceptron whose steps are
so short that what is spent around them shows. Pictures and words are drawn at random: speed does not depend on them.

The loops take turns, `--steps` steps each, in one process and one thread; a figure is the median over rounds of CPU
seconds, a ratio the median of the ratios within each round. The hand-written loop is what one would write without this
project: index a tensor, forward, cross-entropy, backward, fused AdamW; it validates nothing. `--trainer` adds the
`Trainer`, as a careful user would set it up: the same tensors, indexed a batch at a time, normalisation frozen, nothing
logged, kept or clipped; its own start and end are left out. `--together M` takes the steps of M runs one after another,
in one stack (as `fine_tune_many` does), on streams (CUDA), and in processes (on a CPU as many as there are cores, with
a thread each): there seconds are those of the clock, for processes share a machine.

`--precision`: fp32 in all products, tf32 in those of CUDA's tensor cores, or bf16 by autocast; the same for all loops
(of the `Trainer` its own setting for bf16).

Peak memory is the resident set (CUDA: allocations) of a process that runs one loop alone. Linux is asked to forget the
peak of the set-up, so that "set up" is what lies there before the first step (Python, PyTorch, network, examples) and
"loop" what the steps add to it: gradients, the optimiser's state, activations.

On CUDA seconds are those of the clock, up to the end of what was queued, and the hand-written step is compiled, as is
ours; with `--no-compile` neither is. The `Trainer`, which begins anew in each round, never is. MFU is the share of the
card's peak at that precision that a loop makes use of. The peak is what the card's maker states (see `PEAKS`), or
`--peak-tflops`; what autograd runs is counted by torch's FlopCounterMode.
"""

import argparse
import ctypes
import datetime
import gc
import json
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.training.material import (
    BATCH,
    CASES,
    EXAMPLES,
    RATE,
    Case,
    Material,
    Precision,
    Spent,
    Steps,
    again,
    card_here,
    compared,
    flops_of_a_step,
    fresh_run,
    in_a_process,
    material,
    now,
    peak_tflops,
    ratios,
    seconds,
    set_up,
    timed,
)
from benchmarks.training.together import cores, one_after_another, print_together, started
from modelgit.train.features import run_stages
from modelgit.train.fitting.passes import apply_head, autocast, freeze
from modelgit.train.networks.network import Network

# ------------------------------------------------------------------------------------------------------ the loops


def ours(given: Material) -> Steps:
    """Return modelgit's loop."""
    return one_after_another([fresh_run(given)], given.case)


def by_hand(given: Material) -> Steps:
    """Return a loop written by hand."""
    network, stages, case = given.network, given.case.stages, given.case
    freeze(network, stages)
    optimiser = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], RATE, fused=True)
    draws = torch.Generator().manual_seed(0)
    on_cpu, device = case.device == "cpu", given.labels.device

    def scores_of(x: Tensor) -> Tensor:
        with autocast(device, "bfloat16" if case.precision == "bf16" else "float32"):
            return apply_head(network, run_stages(network, x, stages, None)).float()

    mode = None if on_cpu else "reduce-overhead"
    forward = torch.compile(scores_of, dynamic=False, mode=mode) if case.compiled else scores_of

    def take(count: int) -> None:
        for _ in range(count):
            rows = torch.randint(EXAMPLES, (BATCH,), generator=draws).to(device, non_blocking=True)
            inputs, labels = given.batch(rows)
            optimiser.zero_grad(set_to_none=True)
            loss = functional.cross_entropy(forward(inputs), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            if on_cpu and not bool(loss.isfinite()):
                raise SystemExit("the loss is not finite")

    return timed(case, take)


class Tail(nn.Module):
    """What lies behind the frozen stages, as the Trainer wants a model: inputs and labels to a loss."""

    def __init__(self, network: Network, stages: int) -> None:
        super().__init__()
        self.network, self._stages = network, stages

    def train(self, mode: bool = True) -> "Tail":
        """Stays as it is: statistics frozen and no dropout, as in the other loops."""
        return super().train(False)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Returns the loss of a batch."""
        scores = apply_head(self.network, run_stages(self.network, x, self._stages, None))
        return {"loss": functional.cross_entropy(scores, labels)}


def by_trainer(given: Material) -> Steps:
    """Return the loop of transformers' Trainer; each call trains anew, its own start and end are left out."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    case, times = given.case, list[Spent]()
    freeze(given.network, case.stages)

    class Clock(TrainerCallback):
        """Takes the time when the first step begins, and when the last has ended."""

        def on_step_begin(self, args: object, state: object, control: object, **_: object) -> None:
            if not times:
                times.append(now(case))

        def on_train_end(self, args: object, state: object, control: object, **_: object) -> None:
            times.append(now(case))

    def collated(rows: Sequence[int]) -> dict[str, Tensor]:
        inputs, labels = given.batch(torch.tensor(rows, device=given.labels.device))
        return {"x": inputs, "labels": labels}

    def steps(count: int) -> Spent:
        times.clear()
        arguments = TrainingArguments(
            "build/bench-trainer", per_device_train_batch_size=BATCH, max_steps=count, learning_rate=RATE,
            lr_scheduler_type="constant", max_grad_norm=0.0, optim="adamw_torch_fused", remove_unused_columns=False,
            dataloader_drop_last=True, dataloader_pin_memory=False, use_cpu=case.device == "cpu",
            bf16=case.precision == "bf16",
            save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True,
        )  # fmt: skip
        dataset = list(range(EXAMPLES // BATCH * BATCH))
        model = Tail(given.network, case.stages)
        trainer = Trainer(model, arguments, collated, dataset, callbacks=[Clock()])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return Spent(times[1].cpu_s - times[0].cpu_s, times[1].clock_s - times[0].clock_s)

    return steps


LOOPS: dict[str, Callable[[Material], Steps]] = {"modelgit": ours, "by hand": by_hand, "transformers": by_trainer}
LIBRARIES = {"modelgit": (), "by hand": ("torch._dynamo",), "transformers": ("transformers.trainer", "accelerate")}


# ------------------------------------------------------------------------------------------------------- measures


def memory_alone(name: str, case: Case, count: int) -> tuple[float, float]:
    """Return the MB that lie in the memory of a fresh process when a loop is set up, and their peak in its steps."""
    for library in LIBRARIES[name]:  # once, for that process and for this one, which needs them later
        import_module(library)
    return in_a_process(memory_here, name, case, count)


def memory_here(name: str, case: Case, count: int) -> tuple[float, float]:
    """Return the MB that lie in the memory of this process when a loop is set up, and their peak in its steps."""
    set_up(case)
    steps = LOOPS[name](material(case))
    gc.collect()
    if case.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
        steps(count)
        return before, torch.cuda.max_memory_allocated() / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # what the set-up has given back would hide what the steps take
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak, see proc(5)
    before = peak_mb()
    steps(count)
    return before, peak_mb()


def peak_mb() -> float:
    """Return the peak of this process's resident set, in MB."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    assert found
    return int(found[1]) / 1024


def first_step_here(case: Case) -> tuple[float, float]:
    """Return the CPU seconds of this process until a training is ready for its first step, and of that step."""
    case = replace(case, compiled=False)
    set_up(case)
    steps = ours(material(case))
    ready = time.process_time()
    return ready, steps(1).cpu_s


# --------------------------------------------------------------------------------------------------------- tables


def print_loops(case: Case, arguments: argparse.Namespace) -> dict[str, object]:
    """Print and return what the loops come to."""
    names = ["modelgit", "by hand", *(["transformers"] if arguments.trainer else [])]
    alone = {name: memory_alone(name, case, arguments.steps) for name in names}  # first, as processes are forked
    apart = started(case, arguments.together, arguments.processes) if arguments.together else {}
    set_up(case)
    given = material(case)
    loops = {name: LOOPS[name](again(given)) for name in names}
    times = seconds(compared(loops, arguments.rounds, arguments.steps), case)
    rate = {name: BATCH * arguments.steps / statistics.median(found) for name, found in times.items()}
    print("| loop | samples / s | modelgit / it (all rounds) | MB set up + loop | modelgit / it: peak, loop |")
    print("|---|---|---|---|---|")
    own, own_peak = alone["modelgit"]
    for name in names:
        found, (before, peak) = ratios(times, "modelgit", name), alone[name]
        rounds = f"{statistics.median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})"
        leaner = f"{own_peak / peak:.2f}, {(own_peak - own) / (peak - before):.2f}"
        print(f"| {name} | {rate[name]:.0f} | {rounds} | {before:.0f} + {peak - before:.0f} | {leaner} |")
    table: dict[str, object] = {"seconds": times, "samples_per_s": rate, "set_up_and_peak_mb": alone}
    if arguments.peak_tflops:
        each = flops_of_a_step(given) / BATCH
        table["flops_of_a_sample"] = each
        shares = {name: each * value / arguments.peak_tflops / 1e12 for name, value in rate.items()}
        print("\nshare of the peak (MFU): " + ", ".join(f"{name} {share:.3f}" for name, share in shares.items()))
        table["mfu"] = shares
    if arguments.together:
        counts = arguments.together, arguments.rounds, arguments.steps
        table["together_s"] = print_together(given, apart, counts, arguments.peak_tflops)
    return table


def parsed() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description="The training loop beside one written by hand.")
    parser.add_argument("case", nargs="?", choices=sorted(CASES), default="pictures")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--trainer", action="store_true", help="add the Trainer of transformers")
    parser.add_argument("--precision", choices=get_args(Precision), default="fp32", help="of all loops alike")
    parser.add_argument("--together", type=int, default=0, metavar="M", help="add M runs in several ways")
    parser.add_argument("--processes", type=int, default=0, metavar="N", help="for M runs; 0: cores, on CUDA M")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="steps; left out: on CUDA alone")
    parser.add_argument("--peak-tflops", type=float, default=0.0, help="of the device at this precision: tells MFU")
    parser.add_argument("--starts", type=int, default=3, help="how often the first step is timed")
    parser.add_argument("--out", type=Path, default=Path("build/bench-train.json"))
    found = parser.parse_args()
    if found.precision == "tf32" and found.device == "cpu":
        parser.error("tf32 is a way of CUDA's tensor cores: --device cuda")
    found.compile = found.device == "cuda" if found.compile is None else found.compile
    return found


def machine(arguments: argparse.Namespace) -> dict[str, object]:
    """Print and return what was measured on, and when; fill the peak in where the card's is known."""
    name = in_a_process(card_here) if arguments.device == "cuda" else f"{cores()} cores, {platform.machine()}"
    if arguments.device == "cuda" and not arguments.peak_tflops:
        arguments.peak_tflops = peak_tflops(name, arguments.precision)
    today = datetime.date.today().isoformat()
    peak = f", peak {arguments.peak_tflops:g} TFLOP/s" if arguments.peak_tflops else ""
    steps = "compiled" if arguments.compile else "not compiled"
    print(f"{name}{peak}, torch {torch.__version__}, {today}: {arguments.case}, {arguments.precision}, {steps}\n")
    return {"device": name, "torch": torch.__version__, "date": today}


def main() -> None:
    """Print the tables, and write them."""
    imported_s = time.process_time()
    arguments = parsed()
    torch.set_num_threads(1)
    kind = {"device": arguments.device, "precision": arguments.precision, "compiled": arguments.compile}
    case = replace(CASES[arguments.case], **kind)
    table: dict[str, object] = machine(arguments)
    table["arguments"] = {key: str(value) for key, value in vars(arguments).items()}
    starts = [in_a_process(first_step_here, case) for _ in range(arguments.starts)]
    ready_s, step_s = (statistics.median(each) for each in zip(*starts, strict=True))
    table["first_step_cpu_s"] = {"imports": imported_s, "network and examples": ready_s, "first step": step_s}
    table.update(print_loops(case, arguments))
    print(f"\nstart of Python to the end of the first step: {imported_s + ready_s + step_s:.1f} CPU s,")
    print(f"imports {imported_s:.1f}, network and examples {ready_s:.1f}, step {step_s:.1f}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
