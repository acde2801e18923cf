"""The window to a peer: order kept, limit kept, nobody forgotten."""

from hypothesis import given
from hypothesis import strategies as st

from nmoe.node.transport.window import Window


def test_one_heavier_than_the_window_goes_alone() -> None:
    window: Window[str] = Window(limit_bytes=10)
    assert window.offer(50, "heavy", 0)
    assert window.ready() == ["heavy"]
    assert window.offer(1, "light", 0)
    assert window.ready() == []
    window.answered(50)
    assert window.ready() == ["light"]


def test_a_timed_out_query_counts_until_the_node_is_heard_from_or_its_link_is_closed() -> None:
    window: Window[str] = Window(limit_bytes=10, linger_s=2.0)
    window.offer(8, "first", 0)
    window.ready()
    window.offer(8, "behind", 0)
    assert window.timed_out(8, 1.0) == ["behind"]
    assert not window.offer(8, "refused", 2.0)
    assert window.offer(2, "fits", 2.0)
    assert window.ready() == ["fits"]
    window.answered(2)
    assert window.offer(8, "heard from again", 2.1)
    window.ready()
    window.timed_out(8, 3.0)
    assert window.offer(8, "long after", 5.1)


@given(st.lists(st.tuples(st.integers(1, 30), st.booleans(), st.booleans()), max_size=60))
def test_nothing_taken_is_lost_and_the_limit_holds(steps: list[tuple[int, bool, bool]]) -> None:
    window: Window[int] = Window(limit_bytes=20, max_waiting_bytes=40, linger_s=3.0)
    sizes: dict[int, int] = {}
    flying: list[int] = []
    dropped: list[int] = []
    for now_s, (size, settle, in_time) in enumerate(steps):
        if settle and flying:
            item = flying.pop(0)
            if in_time:
                window.answered(sizes[item])
            else:
                dropped += window.timed_out(sizes[item], now_s)
            del sizes[item]
        elif window.offer(size, now_s, now_s):
            sizes[now_s] = size
        flying += window.ready()
        assert window.in_flight_bytes == sum(sizes[item] for item in flying)
        assert window.in_flight_bytes <= 20 or len(flying) == 1
        if not flying:
            assert not window.waiting  # nobody waits for something that will never end
    assert sorted(flying + [item for _, item in window.waiting]) == sorted(set(sizes) - set(dropped))
