"""How `git merge` is to merge weights, from git's configuration: the user's own, which no clone brings.

git config modelgit.merge.method ties
git config --add modelgit.merge.set density=0.3
git config modelgit.merge.weights 2,1            (ours, theirs)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelgit.errors import MergeConflict, UsageError
from modelgit.repo.repository import Repository

if TYPE_CHECKING:
    from modelgit.merge.methods import Method

PREFIX = "modelgit.merge."
KNOWN = ("method", "set", "weights")


@dataclass(frozen=True, slots=True)
class Configured:
    """The method as text, its settings, the weights of ours and theirs."""

    method: str
    settings: Mapping[str, str]
    weights: tuple[float, float]

    def made(self, *, has_base: bool) -> "Method":
        """Returns the method. Raises MergeConflict, naming the configuration, for what makes no sense."""
        from modelgit.merge.methods import check_arguments, make

        try:
            method = make(self.method, self.settings)
            check_arguments(method, self.weights, has_base=has_base)
        except UsageError as error:
            raise MergeConflict(f"git config {PREFIX}*: {error.message}", hint=error.hint) from error
        if getattr(method, "statistics", ""):
            hint = f"modelgit merge BRANCH --method {method.name} --stats-on DATA"
            told = f"{method.name} needs statistics of every model, which git does not give"
            raise MergeConflict(f"git config {PREFIX}method: {told}", hint=hint)
        return method


def configured(repo: Repository) -> Configured:
    """Returns how to merge; the uniform mean where nothing is configured.

    Raises:
        MergeConflict: a key that is not known, or a value that is none.
    """
    _, output, _ = repo.git.attempt("config", "-z", "--get-regexp", r"^modelgit\.merge\.")
    found: dict[str, list[str]] = {}
    for row in output.decode("utf-8", "replace").split("\0"):
        key, _, value = row.partition("\n")
        if key:
            found.setdefault(key.removeprefix(PREFIX), []).append(value)
    unknown = sorted(found.keys() - set(KNOWN))
    if unknown:
        raise wrong(unknown[0], f"no such setting; known: {', '.join(KNOWN)}")
    pairs = [text.partition("=") for text in found.get("set", [])]
    if bad := [key for key, equals, _ in pairs if not key or not equals]:
        raise wrong("set", f"expected KEY=VALUE, got '{bad[0]}'")
    method = found.get("method", ["linear"])[-1]
    if ".py:" in method:
        raise wrong("method", f"'{method}' is a file: name it on the command line, modelgit merge --method {method}")
    return Configured(method, {key: value for key, _, value in pairs}, weights_of(found.get("weights", [])))


def weights_of(texts: Sequence[str]) -> tuple[float, float]:
    """Returns the weights of ours and theirs. Raises MergeConflict unless they are two numbers."""
    if not texts:
        return 1.0, 1.0
    try:
        ours, theirs = (float(word) for word in texts[-1].split(","))
    except ValueError:
        raise wrong("weights", f"expected two numbers, OURS,THEIRS, got '{texts[-1]}'") from None
    return ours, theirs


def wrong(key: str, what: str) -> MergeConflict:
    """Returns the error for a setting."""
    return MergeConflict(f"git config {PREFIX}{key}: {what}", hint=f"git config --show-origin --get-all {PREFIX}{key}")
