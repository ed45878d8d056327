"""Names that cross process borders."""

import pytest

from app.naming import listener_of, queue_of, task_id


@pytest.mark.parametrize(
    ("nodename", "name"),
    [("listener-1@host", "listener-1"), ("a@b@c", "a"), ("Edge_2.eu@h", "Edge_2.eu"), ("x", "x"), ("l" * 64 + "@h", "l" * 64)],
)
def test_a_listener_s_name_is_what_stands_before_the_host(nodename, name):
    assert listener_of(nodename) == name


@pytest.mark.parametrize("nodename", ["@host", "-a@h", "a b@h", "a/b@h", "l" * 65 + "@h", "ünser@h", "a\n@h", "a|b@h", ""])
def test_other_names_are_refused(nodename):
    with pytest.raises(ValueError, match="no listener name"):
        listener_of(nodename)


def test_queue():
    assert queue_of("listener-1") == "events.listener-1"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("order~7", 0, "listener-1"), "order~7/listener-1"),
        (("order~7", 249, "listener-1"), "order~7+249/listener-1"),
        (("order~7", 249, "recovery", 3), "order~7+249/recovery~3"),
        (("a/b+c d", 0, "listener-1"), "a%2Fb%2Bc%20d/listener-1"),
        (("ключ", 0, "l"), "%D0%BA%D0%BB%D1%8E%D1%87/l"),
    ],
)
def test_task_ids_show_the_key_and_are_each_their_own(arguments, expected):
    assert task_id(*arguments) == expected


def test_every_sending_of_a_batch_has_its_own_id():
    ids = {task_id("k", 2, to, attempt) for to in ("listener-1", "listener-2", "recovery") for attempt in range(1, 5)}
    assert len(ids) == 12
