"""A model of the library as stages: what comes before its layers, each layer, and what comes behind them in the last.

The library gives a model's whole forward pass and no parts of it. A part is had by running that very pass with other
functions in the place of the layers: such that note what layers are called with, and give what is already known.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from modelgit.errors import FormatError
from modelgit.train.networks.encoders.texts import with_mask
from modelgit.train.networks.network import Direct, Stages

Answer = Callable[["Call", int, Tensor], Any]  # what stands for a layer: its call, its number, the hidden states


class Model(Protocol):
    """How a model is run: on tokens, whose mask hidden states carry along as one more channel, or on pictures."""

    base: nn.Module
    masked: bool

    def whole(self, x: Tensor) -> Any:
        """Returns what the model makes of prepared examples."""

    def again(self, hidden: Tensor, mask: Tensor | None) -> Any:
        """Runs the model on anything that has a place for hidden states; layers that are stood in for do not see it."""

    def features(self, found: Any, mask: Tensor | None) -> Tensor:
        """Returns what the model has made as (n, features)."""


@dataclass(frozen=True, slots=True)
class Call:
    """What a layer is called with besides hidden states, and by which name it takes these ("": as the first)."""

    forward: Callable[..., Any]
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def on(self, layer: Callable[..., Any], hidden: Tensor) -> Any:
        """Calls a layer so."""
        if self.name:
            return layer(*self.args, **{self.name: hidden}, **self.kwargs)
        return layer(hidden, *self.args, **self.kwargs)


@dataclass(slots=True)
class Pass:
    """A run of a model with something in the place of its layers: what each was given, its call, and the answer."""

    hidden: list[Tensor] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)
    result: Any = None


class Uncut(Exception):
    """Layers that are not run once each, one after the other, each on what the one before has made."""


def passed(layers: Sequence[nn.Module], run: Callable[[], Any], answer: Answer) -> Pass:
    """Returns a run of a model in which `answer` stands for its layers. Raises Uncut."""
    noted = Pass()

    def stand_in(number: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if number != len(noted.calls):
            raise Uncut
        name = "" if args else next(iter(kwargs))
        hidden = args[0] if args else kwargs.pop(name)
        noted.hidden.append(hidden)
        noted.calls.append(Call(forward, name, args[1:], kwargs))
        noted.answers.append(answer(noted.calls[-1], number, hidden))
        return noted.answers[-1]

    with in_place_of(layers, stand_in):
        noted.result = run()
    if len(noted.calls) != len(layers):
        raise Uncut
    return noted


@contextmanager
def in_place_of(layers: Sequence[nn.Module], stand_in: Callable[..., Any]) -> Iterator[None]:
    """Has a function called for the `forward` of layers, for as long as the block runs."""
    for number, layer in enumerate(layers):
        layer.forward = partial(stand_in, number, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def hidden_in(answer: Any) -> Tensor:
    """Returns the hidden states in what a layer gives: that itself, or the first of several."""
    found: Tensor = answer[0] if isinstance(answer, tuple | list) else answer
    return found


def like(answer: Any, hidden: Tensor) -> Any:
    """Returns hidden states in the form of a layer's answer, without its other tensors."""
    if not isinstance(answer, tuple | list):
        return hidden
    return (hidden, *(None if isinstance(part, Tensor) else part for part in answer[1:]))


@dataclass(slots=True)
class Known:
    """What one stage has given to the next, and the calls of layers that go with it, so as not to find them twice."""

    tensor: Tensor | None = None
    calls: list[Call] = field(default_factory=list)

    def given(self, hidden: Tensor, mask: Tensor | None, calls: list[Call]) -> Tensor:
        """Returns what the next stage is given, and remembers it; of pictures there is nothing to remember."""
        if mask is None:
            return hidden
        self.tensor, self.calls = with_mask(hidden, mask), calls
        return self.tensor


class Whole:
    """A model that is one stage."""

    sized = False

    def __init__(self, model: Model, example: Tensor) -> None:
        self._model = model
        with torch.no_grad():
            self.feature_size = self.whole(example).shape[1]

    def whole(self, x: Tensor) -> Tensor:
        """Returns the features of prepared examples."""
        return self._model.features(self._model.whole(x), x.ne(0) if self._model.masked else None)

    def stages(self) -> Stages:
        """Returns the one stage."""
        return [(self.whole, [self._model.base])]


class Cut:
    """A model whose layers are run one by one."""

    def __init__(self, model: Model, layers: Sequence[nn.Module], example: Tensor, whole: Whole) -> None:
        """Looks at a run of one example. Raises Uncut if the model cannot be cut between these layers."""
        self._model, self._layers = model, list(layers)
        self.whole, self.feature_size = whole.whole, whole.feature_size
        self._passed: Callable[..., Pass] = torch.compiler.disable(passed)  # type: ignore[no-untyped-call]  # layers themselves are compiled
        self._behind = set[nn.Module]()
        self._seen = self._looked_at(example)
        self.sized = not model.masked and any(map(says_something, self._seen.calls))  # calls fit this size alone

    def _looked_at(self, example: Tensor) -> Pass:
        """Returns a run of the real layers, having noted what is run behind them."""

        def first_called(module: nn.Module, _inputs: Any) -> None:
            seen.setdefault(module, ended[0])

        def real(call: Call, number: int, hidden: Tensor) -> Any:
            found = call.on(call.forward, hidden)
            ended[0] = number == len(self._layers) - 1
            return found

        seen, ended = dict[nn.Module, bool](), [False]
        hooks = [module.register_forward_pre_hook(first_called) for module in outside(self._model.base, self._layers)]
        try:
            with torch.enable_grad():
                found = passed(self._layers, partial(self._model.whole, example), real)
        finally:
            for hook in hooks:
                hook.remove()
        chained = all(a is hidden_in(b) for a, b in zip(found.hidden[1:], found.answers, strict=False))
        if not chained or (not self._model.masked and any(map(depends, found.calls))):
            raise Uncut
        self._behind = {module for module, late in seen.items() if late}
        return detached(found)

    def stages(self) -> Stages:
        """Returns what is before the layers, and the layers; the last gives features."""
        others = [(Direct(m) if any(m.children()) else m, m) for m in outside(self._model.base, self._layers)]
        before, behind = ([own for own, m in others if (m in self._behind) is late] for late in (False, True))
        last = len(self._layers) - 1
        parts = [[layer, *(behind if number == last else [])] for number, layer in enumerate(self._layers)]
        known = Known()
        layers = ((partial(self._layer, known, number), part) for number, part in enumerate(parts))
        return [(partial(self._first, known), before), *layers]

    def _first(self, known: "Known", x: Tensor) -> Tensor:
        """Returns what the first layer is given."""
        noted = self._passed(self._layers, partial(self._model.whole, x), self._along)
        return known.given(noted.hidden[0], x.ne(0) if self._model.masked else None, noted.calls)

    def _layer(self, known: "Known", number: int, x: Tensor) -> Tensor:
        """Returns what a layer makes of what it is given; the last gives features."""
        hidden, mask = (x[..., :-1], x[..., -1].detach()) if self._model.masked else (x, None)
        calls = known.calls if known.tensor is x else self._calls(hidden, mask)
        hidden = hidden_in(calls[number].on(self._layers[number], hidden))
        if number < len(self._layers) - 1:
            return known.given(hidden, mask, calls)

        def end(call: Call, place: int, before: Tensor) -> Any:
            return like(self._seen.answers[place], hidden) if place == number else self._along(call, place, before)

        noted = self._passed(self._layers, partial(self._model.again, hidden, mask), end)
        return self._model.features(noted.result, mask)

    def _calls(self, hidden: Tensor, mask: Tensor | None) -> list[Call]:
        """Returns how layers are called: for texts by their mask, for pictures as the example's were."""
        if mask is None:
            return [moved(call, hidden.device) for call in self._seen.calls]
        return self._passed(self._layers, partial(self._model.again, hidden, mask), self._along).calls

    def _along(self, _call: Call, number: int, hidden: Tensor) -> Any:
        """Stands for a layer: gives texts as they are, of pictures what the example was at that place."""
        answer = self._seen.answers[number]
        return like(answer, hidden if self._model.masked else hidden_in(answer).to(hidden.device))


def outside(base: nn.Module, layers: Sequence[nn.Module]) -> list[nn.Module]:
    """Returns the modules of a model that hold tensors themselves and are no part of its layers."""
    inside = {part for layer in layers for part in layer.modules()}
    return [m for m in base.modules() if m not in inside and (m._parameters or m._buffers)]


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yields every tensor in what a layer is called with, or gives."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)


def depends(call: Call) -> bool:
    """Tells whether a call has tensors that are trained."""
    return any(tensor.requires_grad for tensor in tensors_in((call.args, call.kwargs)))


def says_something(call: Call) -> bool:
    """Tells whether a call has more than hidden states and switches."""
    return any(value is not None and not isinstance(value, bool) for value in (*call.args, *call.kwargs.values()))


def moved(value: Any, device: torch.device) -> Any:
    """Returns a call, or what it has, on a device."""
    if isinstance(value, Call):
        return Call(value.forward, value.name, moved(value.args, device), moved(value.kwargs, device))
    if isinstance(value, dict):
        return {key: moved(item, device) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(moved(item, device) for item in value)
    return value.to(device) if isinstance(value, Tensor) else value


def detached(found: Pass) -> Pass:
    """Returns a run without what gradients would need."""
    answers = [like(answer, hidden_in(answer).detach()) for answer in found.answers]
    return Pass([], found.calls, answers)


def staged(model: Model, examples: Sequence[Tensor]) -> "Cut | Whole":
    """Returns a model between the layers of its largest list of like modules, or whole if it cannot be cut there.

    `examples` are one, and then two of the same shape: the parts must make of these what the whole does, in form.

    Raises:
        FormatError: the model cannot be run at all.
    """
    one, two = examples
    try:
        whole = Whole(model, two)
    except Exception as error:  # whatever the library raises
        raise FormatError(f"config.json: {type(model.base).__name__} cannot be run: {str(error)[:200]}") from error
    try:
        found = Cut(model, layers_of(model.base), one, whole)
        x = two
        for stage, _ in found.stages():
            x = stage(x)
    except Exception:  # noqa: BLE001  # whatever the library raises where another thing than a layer answers
        return whole
    return found if x.shape == (2, whole.feature_size) else whole


def layers_of(base: nn.Module) -> list[nn.Module]:
    """Returns the parts of the list with most numbers whose parts are all of one class; none if there is no list."""
    lists = [list(m) for m in base.modules() if isinstance(m, nn.ModuleList) and len({type(part) for part in m}) == 1]
    return max(lists, key=lambda parts: sum(p.numel() for part in parts for p in part.parameters()), default=[])
