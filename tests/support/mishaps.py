"""Calls of a store that go wrong once, and what happens just before one."""


def failing(store: object, method: str, error: Exception) -> None:
    """The next call of a method raises, and does nothing."""
    _once(store, method, lambda _call: _raise(error))


def losing_the_reply(store: object, method: str, error: Exception) -> None:
    """The next call of a method does what it should, and raises."""

    def act(call):
        call()
        raise error

    _once(store, method, act)


def before(store: object, method: str, *actions) -> None:
    """Something happens just before the next calls of a method: an action for each of them."""
    rest = list(actions)
    original = getattr(store, method)

    def wrapped(*args, **kwargs):
        if rest:
            rest.pop(0)()
        return original(*args, **kwargs)

    setattr(store, method, wrapped)


def _once(store: object, method: str, act) -> None:
    original = getattr(store, method)

    def wrapped(*args, **kwargs):
        setattr(store, method, original)
        return act(lambda: original(*args, **kwargs))

    setattr(store, method, wrapped)


def _raise(error: Exception) -> None:
    raise error
