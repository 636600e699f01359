"""Listeners: what is told to two of them."""

from modelgit.events import Advanced, Event, Finished, Started, both


def test_both_listeners_hear_everything() -> None:
    one, other = list[Event](), list[Event]()
    tell = both(one.append, other.append)
    events: list[Event] = [Started("a", 2, "steps"), Advanced("a", 2), Finished("a")]
    for event in events:
        tell(event)
    assert one == other == events
