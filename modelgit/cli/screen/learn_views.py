"""How trained versions and programs of one's own look."""

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from modelgit.cli.screen.blocks import Block, Span, count_text, faint, identity, line
from modelgit.cli.screen.views import some, view

if TYPE_CHECKING:
    from modelgit.porcelain.executing import Executed
    from modelgit.porcelain.training.rerunning import Retrained


@view("Retrained", lambda result: [result.commit])
def retrained(result: "Retrained") -> Iterator[Block]:
    """A fine-tuning that was carried out again."""
    same = "every bit the same" if result.exact else f"within {100 * result.apart:.2g} % of the way from its start"
    what = f"{count_text(result.tensors, 'tensor')}, {same}"
    yield line(Span("ok", "good"), " ", identity(result.commit), f" trained again on {result.device}: {what}")


@view("Executed", lambda result: [result.commit] if result.commit else [])
def executed(result: "Executed") -> Iterator[Block]:
    """A program that was run, and what it wrote."""
    took = f"{shlex.join(result.command)} took {result.seconds:,.1f} s"
    if result.commit is None:
        yield line(f"{took} and wrote nothing that git does not ignore: no commit")
        return
    yield line(f"[{result.branch or 'detached HEAD'} ", identity(result.commit), f"] {took}")
    yield line(f"  files: {some(result.paths)}")
    for name, digest in result.data.items():
        yield line(faint(f"  data: {name}, digest {digest[:16]}…"))
