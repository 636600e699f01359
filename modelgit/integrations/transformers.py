"""A callback for the `Trainer` of transformers: each checkpoint it saves becomes a commit."""

import warnings
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from modelgit.errors import DependencyMissing
from modelgit.integrations.checkpoints import DEFAULT_MESSAGE, Checkpoint, Committing, filled, latest

try:
    from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
    from transformers.training_args import TrainingArguments
except ImportError as error:
    raise DependencyMissing("the callback needs transformers", hint="pip install 'modelgit[text]'") from error


class ModelgitCallback(Committing, TrainerCallback):
    """Commits what the `Trainer` saves: weights (of a PEFT model its adapter), configuration and tokenizer.

    `repository` is made if it is not there. The commits go to `branch`, the one checked out unless named, with step,
    epoch and the latest metrics as trailers. `message` may hold {step}, {epoch} and {run}.

    A checkpoint that cannot be committed is a warning, and the training goes on; with `strict` it ends with the error.

    Raises:
        RepositoryError, UsageError: a place, branch or message that cannot be, before the training begins.
    """

    def __init__(
        self,
        repository: str | PathLike[str],
        branch: str | None = None,
        message: str = DEFAULT_MESSAGE,
        *,
        strict: bool = False,
    ) -> None:
        self.begin(repository, branch, message, strict=strict)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Warns where the Trainer will save nothing."""
        if args.save_strategy == "no" and state.is_world_process_zero:
            warnings.warn("modelgit: save_strategy is 'no': nothing will be saved, nor committed", stacklevel=2)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Commits the checkpoint that was just saved, from the process that saved it."""
        if state.is_world_process_zero:
            self.attempt(state.global_step, partial(self._checkpoint, args, state))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Says once more, where it is not scrolled away, which checkpoints were not committed."""
        self.end(str(args.output_dir))

    def _checkpoint(self, args: TrainingArguments, state: TrainerState) -> Checkpoint:
        step, epoch, run = state.global_step, float(state.epoch or 0), str(args.run_name or "")
        return Checkpoint(
            saved=Path(str(args.output_dir)) / f"checkpoint-{step}",
            message=filled(self.message, step=step, epoch=epoch, run=run),
            step=step,
            epoch=epoch,
            metrics=latest(state.log_history),
            details={"trainer": "transformers", "seed": args.seed, "steps": state.max_steps},
        )
