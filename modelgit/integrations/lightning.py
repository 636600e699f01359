"""A callback for the `Trainer` of Lightning: each checkpoint it saves becomes a commit."""

import sys
import warnings
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from os import PathLike
from typing import Any

from modelgit.errors import DependencyMissing
from modelgit.integrations.checkpoints import DEFAULT_MESSAGE, Checkpoint, Committing, Metric, filled

PACKAGES = ("lightning.pytorch", "pytorch_lightning")  # one library under two names, with classes of their own


def base_class() -> type:
    """Returns the class that callbacks have in the package that the program uses. Raises DependencyMissing."""
    for name in sorted(PACKAGES, key=lambda name: name not in sys.modules):
        try:
            found: type = import_module(name).Callback
        except ImportError:
            continue
        return found
    raise DependencyMissing("the callback needs Lightning", hint="pip install lightning")


class LightningCallback(Committing, base_class()):  # type: ignore[misc]  # which of two classes it is, is known when it runs
    """Commits the weights that the `Trainer` saves in a checkpoint, by the names of the module's state dict.

    `repository` is made if it is not there. The commits go to `branch`, the one checked out unless named, with step,
    epoch and the logged metrics as trailers. `message` may hold {step}, {epoch} and {run}, the module's name.

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
        super().__init__()
        self.begin(repository, branch, message, strict=strict)
        self._step = -1  # of the last checkpoint: several may be saved at one step

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Warns where the Trainer will tell callbacks of no checkpoint."""
        whole = [saver for saver in trainer.checkpoint_callbacks if not getattr(saver, "save_weights_only", False)]
        if not whole and trainer.is_global_zero:
            why = "save_weights_only is set" if trainer.checkpoint_callbacks else "enable_checkpointing is off"
            warnings.warn(f"modelgit: {why}: no checkpoint will be committed", stacklevel=2)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Commits the weights of the checkpoint that is about to be written, once a step, from the first process."""
        step = int(checkpoint["global_step"])
        if not trainer.is_global_zero or step == self._step:
            return
        self._step = step
        self.attempt(step, partial(self._checkpoint, trainer, pl_module, checkpoint))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Says once more, where it is not scrolled away, which checkpoints were not committed."""
        self.end(str(trainer.default_root_dir))

    def _checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Mapping[str, Any]) -> Checkpoint:
        step, epoch, run = int(checkpoint["global_step"]), float(checkpoint["epoch"]), type(pl_module).__name__
        metrics = sorted((str(name), float(value)) for name, value in trainer.callback_metrics.items())
        return Checkpoint(
            saved=checkpoint["state_dict"],
            message=filled(self.message, step=step, epoch=epoch, run=run),
            step=step,
            epoch=epoch,
            metrics=tuple(Metric(name, value, step) for name, value in metrics),
            details={"trainer": "lightning", "module": run, "steps": trainer.max_steps, "epochs": trainer.max_epochs},
        )
