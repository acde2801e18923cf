"""What is wanted next: in order, side by side, urgent first, everything once."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from nmoe.deliver.layout import DTYPES, Layout, TensorPlace
from nmoe.deliver.pieces import PIECE_BYTES, PieceQueue


def layout(*sizes, prefix="t", head=10):
    places, at = [], head
    for number, size in enumerate(sizes):
        places.append(TensorPlace(name=f"{prefix}{number}", dtype=DTYPES["U8"], shape=(size,), start=at, end=at + size))
        at += size
    return Layout(file_bytes=at, data_start=head, tensors=tuple(places))


def names(queue, run):
    return [queue.pieces[number].tensor for number in run]


def test_runs_follow_the_order_and_join_neighbours():
    queue = PieceQueue([layout(100, 100, 100, 100)], window_bytes=250)
    queue.reorder(["t2", "t3", "t0", "t1"])
    assert [names(queue, queue.take_run()) for _ in range(3)] == [["t2", "t3"], ["t0", "t1"], []]


def test_a_run_begins_before_the_first_wanted_where_the_window_wants_it():
    queue = PieceQueue([layout(100, 100)], window_bytes=250)
    queue.reorder(["t1", "t0"])
    assert names(queue, queue.take_run()) == ["t0", "t1"]


def test_a_small_gap_is_fetched_along_and_a_large_one_is_not():
    small, large = PieceQueue([layout(100, 10, 100)], window_bytes=200), PieceQueue([layout(100, 90, 100)], window_bytes=200)
    for queue in (small, large):
        queue.reorder(["t0", "t2", "t1"])
    assert names(small, small.take_run()) == ["t0", "t1", "t2"]
    assert names(large, large.take_run()) == ["t0"]


def test_what_is_waited_for_goes_first():
    queue = PieceQueue([layout(100, 100, 100)], window_bytes=100)
    queue.hurry("t2")
    queue.hurry("nothing of that name")
    assert [names(queue, queue.take_run()) for _ in range(3)] == [["t2"], ["t0"], ["t1"]]


def test_a_run_stays_in_one_file():
    queue = PieceQueue([layout(100), layout(100, prefix="u")], window_bytes=1000)
    assert [names(queue, queue.take_run()) for _ in range(2)] == [["t0"], ["u0"]]


def test_large_tensors_are_cut_and_whole_when_their_last_piece_is():
    queue = PieceQueue([layout(2 * PIECE_BYTES + 1)])
    assert [queue.pieces[number].end - queue.pieces[number].start for number in queue.numbers("t0")] == [PIECE_BYTES, PIECE_BYTES, 1]
    assert [queue.finish(number) for number in (2, 0, 1)] == [False, False, True]


def test_wrong_pieces_come_again():
    queue = PieceQueue([layout(100, 100)], window_bytes=100)
    run = queue.take_run()
    assert queue.finish(run[0])
    queue.give_back(run)
    assert names(queue, queue.take_run()) == ["t0"]
    assert queue.finish(run[0])


def test_cached_pieces_are_checked_in_order_and_not_fetched():
    queue = PieceQueue([layout(100, 100, 100)], window_bytes=300)
    queue.reorder(["t2", "t1", "t0"])
    queue.cached(0)
    queue.cached(2)
    queue.hurry("t0")
    assert names(queue, queue.take_run()) == ["t1"]
    assert [queue.take_cached() for _ in range(3)] == [0, 2, None]


@given(
    st.lists(st.lists(st.integers(0, 3000), min_size=1, max_size=6), min_size=1, max_size=3),
    st.integers(1, 4000),
    st.randoms(use_true_random=False),
)
def test_every_byte_is_handed_out_once_and_runs_have_no_holes(files, window_bytes, random):
    layouts = [layout(*sizes, prefix=f"f{number}.") for number, sizes in enumerate(files)]
    queue = PieceQueue(layouts, window_bytes=window_bytes)
    tensors = [place.name for each in layouts for place in each.tensors]
    random.shuffle(tensors)
    queue.reorder(tensors)
    whole, taken = [], []
    while run := queue.take_run():
        if random.random() < 0.3:
            queue.hurry(random.choice(tensors))
        pieces = [queue.pieces[number] for number in run]
        assert all(one.end == two.start and one.file == two.file for one, two in pairwise(pieces))
        if random.random() < 0.2:
            queue.give_back(run)
            continue
        taken += run
        whole += [queue.pieces[number].tensor for number in run if queue.finish(number)]
    assert sorted(taken) == list(range(len(queue.pieces)))
    assert sorted(whole) == sorted(place.name for each in layouts for place in each.tensors if place.end > place.start)


def test_a_server_of_whole_files_gives_one_after_the_other():
    queue = PieceQueue([layout(100, 100), layout(100, prefix="u")])
    queue.reorder(["u0"])
    assert [names(queue, queue.take_file()) for _ in range(3)] == [["u0"], ["t0", "t1"], []]
