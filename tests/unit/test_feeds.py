"""Reading events out of files."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.feeds import BadLine, Row, csv_rows, json_lines

ROW = Row(type="flight.departed", source="flights.csv")


def test_json_lines_are_passed_on_as_they_are_with_their_numbers():
    lines = [b"\xef\xbb\xbf" + b'{"type": "a",  "data": 1.0}\n', b"\n", b'  {"type": "b"}  \r\n']
    assert list(json_lines(lines)) == [(1, b'{"type": "a",  "data": 1.0}'), (3, b'{"type": "b"}')]


@pytest.mark.parametrize("bad", [b"{bad", b"[1]", b"7", b'"text"', b"{}{}", b'{"a": "\xff"}', b"[" * 5_000])
def test_a_line_that_is_no_object_is_named_by_its_number(bad):
    with pytest.raises(BadLine, match=r"^line 2: ") as raised:
        list(json_lines([b"{}", bad]))
    assert raised.value.number == 2


def test_bad_lines_can_be_passed_over():
    told: list[int] = []
    lines = [b"{", b'{"type": "a"}', b"[]"]
    assert [number for number, _ in json_lines(lines, lambda bad: told.append(bad.number))] == [2]
    assert told == [1, 3]


def test_rows_become_events_with_numbers_as_numbers():
    lines = [b"carrier,flight,distance,tailnum,zip\n", b"UA,1545,227.5,,00501\n"]
    ((number, event),) = csv_rows(lines, ROW)
    assert number == 2
    assert json.loads(event) == {
        "type": "flight.departed",
        "source": "flights.csv",
        "data": {"carrier": "UA", "flight": 1545, "distance": 227.5, "tailnum": None, "zip": "00501"},
    }


def test_text_leaves_every_value_a_string():
    ((_, event),) = csv_rows([b"a,b\n", b"1,\n"], Row(type="t", source="s", text=True))
    assert json.loads(event)["data"] == {"a": "1", "b": ""}


def test_columns_give_id_and_time():
    row = Row(type="t", source="s", id_column="nr", time_column="at")
    ((_, event),) = csv_rows([b"nr,at\n", b"7,2013-01-01T05:00:00Z\n"], row)
    assert json.loads(event) | {"data": None} == {"type": "t", "source": "s", "id": "7", "time": "2013-01-01T05:00:00Z", "data": None}


def test_quotes_line_breaks_and_a_byte_order_mark_are_read():
    lines = [b"\xef\xbb\xbfname,n\r\n", b'"two\r\n', b'lines, ""quoted""",1\r\n']
    ((number, event),) = csv_rows(lines, ROW)
    assert number == 3
    assert json.loads(event)["data"] == {"name": 'two\r\nlines, "quoted"', "n": 1}


@pytest.mark.parametrize(
    "lines, said",
    [
        ([], "line 1: there is no header"),
        ([b"a,a\n", b"1,2\n"], "line 1: every column needs a name of its own"),
        ([b"a,\n", b"1,2\n"], "line 1: every column needs a name of its own"),
        ([b"a,b\n", b"1,2\n", b"1\n"], "line 3: 1 values for 2 columns"),
        ([b"a\n", b'"open\n'], "line 2: not CSV"),
        ([b"a\n", b"\xff\n"], "line 2: not UTF-8"),
    ],
)
def test_what_is_no_table_is_named_by_its_line(lines, said):
    with pytest.raises(BadLine, match=f"^{said}"):
        list(csv_rows(lines, ROW))


def test_a_missing_column_is_named_with_those_there_are():
    with pytest.raises(BadLine, match="there is no column 'nr', only a, b"):
        list(csv_rows([b"a,b\n"], Row(type="t", source="s", id_column="nr")))


@given(st.text(alphabet="-+.0123456789eE infax", max_size=22))
def test_a_number_is_one_only_if_it_is_written_the_same_way(text):
    line = text.encode() + b"\n"
    events = list(csv_rows([b"v\n", line], ROW))
    if not text.strip("\r\n"):
        return
    ((_, event),) = events
    value = json.loads(event)["data"]["v"]
    assert value == text if isinstance(value, str) else repr(value) == text
