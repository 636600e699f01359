"""Is a version good enough: what `git bisect run` asks at every step to find the commit that lost a score."""

from collections.abc import Sequence

from modelgit.certify.gate import check_bars, parse_bar
from modelgit.errors import GateFailed, ModelgitError, NotEvaluated, UsageError
from modelgit.porcelain.reporting.evaluating import Evaluation, evaluation
from modelgit.repo.repository import Repository
from modelgit.train.task import Workbench


def judge(
    bench: Workbench, repo: Repository, rev: str, data: str, gates: Sequence[str], by: str | None = None
) -> Evaluation:
    """Returns the metrics of a version that clears every bar.

    Raises:
        GateFailed: naming the bars that were missed. NotEvaluated: the version cannot be scored. UsageError: a bar that
        makes no sense; in the middle of a bisection that too is NotEvaluated, lest every version be called bad.
    """
    try:
        bars = [parse_bar(text) for text in gates]
        found = evaluation(bench, repo, rev, data, by)
        check_bars(bars, found.values, found.commit[:10])
        return found
    except GateFailed:
        raise
    except ModelgitError as error:
        if isinstance(error, UsageError) and not (repo.private_dir / "BISECT_LOG").exists():
            raise
        raise NotEvaluated(f"{rev} cannot be judged: {error.message}", hint=error.hint) from error
