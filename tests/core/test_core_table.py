"""Tables: what is read of them, and what is wrong with a bad one said in one line."""

import gzip

import pytest

from nmoe.core.errors import BadFile
from nmoe.core.table import read_table


def test_columns_and_numbers(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("\ufeffName, Value ,other\r\nx,1.5,\r\n\r\ny, -2e3,0\r\n", encoding="utf-8", newline="")
    table = read_table(path)
    assert list(table.columns) == ["name", "value", "other"]
    assert table.columns["name"] == ("x", "y")
    assert table.lines == [2, 4]
    assert table.numbers("value", low=-1e4, high=2.0, missing=False).tolist() == [1.5, -2000]
    other = table.numbers("other", low=0.0, high=0.0, missing=True).tolist()
    assert other[0] != other[0]
    assert other[1] == 0
    assert table.first_of(("nothing", "value", "name")) == "value"
    assert table.first_of(("nothing",)) is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "at least one row"),
        (b"a,b\n", "at least one row"),
        (b"a,A\n1,2\n", "every column once"),
        (b"a,b\n1,2\n1\n", "line 3: 2 fields wanted as in the header, got 1"),
        (b"a\n\xff\xfe\n", "not a table"),
        (b'a\n"' + b"x" * 200_000 + b'"\n', "not a table"),
    ],
)
def test_bad_files_are_one_line(content, said, tmp_path):
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    with pytest.raises(BadFile) as caught:
        read_table(path)
    assert said in str(caught.value)
    assert "bad.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_files(tmp_path):
    whole = gzip.compress(b"a\n" + b"1\n" * 10_000)
    cases = {"plain.csv.gz": b"a\n1\n", "cut.csv.gz": whole[: len(whole) // 2], "flipped.csv.gz": whole[:20] + b"\xff\xff\xff" + whole[23:]}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
    for name in [*cases, "nowhere.csv", "nowhere.csv.gz", "."]:
        with pytest.raises(BadFile, match=r"cannot read|not a table"):
            read_table(tmp_path / name)


@pytest.mark.parametrize("word", ["x", "nan", "inf", "-inf", "1,5", "--1", "3.1"])
def test_what_is_not_a_number_in_range_is_named_with_its_line(word, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(f'a\n1\n"{word}"\n')
    for missing in (False, True):
        with pytest.raises(BadFile, match="line 3: a should be a number") as caught:
            read_table(path).numbers("a", low=0.0, high=3.0, missing=missing)
        assert repr(word) in str(caught.value)


def test_a_table_may_be_empty_where_that_is_allowed(tmp_path):
    path = tmp_path / "bids.csv"
    path.write_text("id, bid\n")
    table = read_table(path, empty=True)
    assert dict(table.columns) == {"id": (), "bid": ()}
    assert table.floats("bid") == []
    path.write_text("")
    with pytest.raises(BadFile, match="should begin with a line that names every column once, got: nothing"):
        read_table(path, empty=True)


def test_floats_are_anything_that_is_a_number_and_mistakes_name_their_line(tmp_path):
    path = tmp_path / "bids.csv"
    path.write_text("id,bid\na, 1e3 \n\nb,nan\nc,-inf\n")
    table = read_table(path)
    assert [str(value) for value in table.floats("bid")] == ["1000.0", "nan", "-inf"]
    assert table.where(1) == f"{path}, line 4"
    path.write_text("id,bid\na,1\nb,\n")
    with pytest.raises(BadFile, match="line 3: bid should be a number, it is ''"):
        read_table(path).floats("bid")
    with pytest.raises(BadFile, match="should have columns id, demand; it lacks demand"):
        read_table(path).require(("id", "demand"))
