"""Handlers: declared, found, matched; what they may return."""

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from app.errors import HandlerSetupError
from app.events.policies import Policies
from app.settings import load_settings
from app.stack import placeholder_urls
from workers import handlers
from workers.handlers import MAX_RESULT_BYTES, Handler, Registry, ResultRefused, check_times, checked_result, handler, load_handlers


@pytest.fixture(autouse=True)
def empty_registry(monkeypatch) -> Iterator[Registry]:
    """No test sees what another one declared."""
    registry = Registry()
    monkeypatch.setattr(handlers, "registry", registry)
    return registry


class TestDeclaring:
    def test_the_function_stays_what_it_was(self, empty_registry):
        def function(event, context):
            return 7

        assert handler("flight.departed")(function) is function
        [declared] = empty_registry
        assert (declared.pattern, declared.at_least_once, declared.is_async) == ("flight.departed", False, False)
        assert declared.name.endswith("function")

    def test_async_and_at_least_once(self, empty_registry):
        @handler("t", at_least_once=True, name="mine")
        async def function(event, context):
            pass

        [declared] = empty_registry
        assert (declared.name, declared.at_least_once, declared.is_async) == ("mine", True, True)

    def test_two_of_one_name_are_refused(self):
        handler("a", name="same")(lambda _event, _context: None)
        with pytest.raises(HandlerSetupError, match="two handlers are named 'same'"):
            handler("b", name="same")(lambda _event, _context: None)

    @pytest.mark.parametrize("function", [lambda: 0, lambda _event: 0, lambda _a, _b, _c: 0])
    def test_a_function_of_other_arguments_is_refused(self, function):
        with pytest.raises(HandlerSetupError, match="must take two arguments"):
            handler("t")(function)

    def test_without_a_type_it_is_refused(self):
        with pytest.raises(HandlerSetupError, match="needs an event type"):

            @handler
            def function(event, context):
                pass

        with pytest.raises(HandlerSetupError, match="needs an event type"):
            handler("")

    def test_handlers_of_a_type_come_in_the_order_of_their_declaration(self):
        registry = Registry()
        for name, pattern in (("1", "a.*"), ("2", "*"), ("3", "b"), ("4", "a.b")):
            registry.add(Handler(name=name, pattern=pattern, function=lambda _event, _context: None))
        assert [h.name for h in registry.for_type("a.b")] == ["1", "2", "4"]
        registry.add(Handler(name="5", pattern="a.b", function=lambda _event, _context: None))
        assert [h.name for h in registry.for_type("a.b")] == ["1", "2", "4", "5"]


class TestLoading:
    @pytest.fixture
    def module(self, tmp_path: Path, monkeypatch):
        """Writes a module, and gives its name."""
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.chdir(tmp_path)
        made = []

        def write(text: str) -> str:
            name = f"handlers_of_a_test_{len(made)}"
            (tmp_path / f"{name}.py").write_text(text)
            made.append(name)
            return name

        yield write
        for name in made:
            sys.modules.pop(name, None)

    def test_a_module_that_declares_some(self, module, empty_registry):
        load_handlers([module("from workers import handler\n@handler('t')\ndef count(event, context): pass\n")])
        assert [h.name for h in empty_registry] == ["handlers_of_a_test_0.count"]

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("import a_package_that_is_not_there", "ModuleNotFoundError: No module named 'a_package_that_is_not_there'"),
            ("def (", "SyntaxError"),
            ("1 / 0", "ZeroDivisionError: division by zero"),
        ],
    )
    def test_one_that_does_not_import_is_named_in_one_sentence(self, module, text, told):
        name = module(text)
        with pytest.raises(HandlerSetupError) as caught:
            load_handlers([name])
        assert name in str(caught.value)
        assert told in str(caught.value)

    def test_one_that_is_not_there(self):
        with pytest.raises(HandlerSetupError, match=r"'no\.such\.module' \(DEDUP_HANDLERS\) does not import"):
            load_handlers(["no.such.module"])

    def test_plain_and_async_that_may_meet_in_one_event_are_refused(self, module):
        text = "from workers import handler\n@handler('a.*')\ndef f(e, c): pass\n@handler('*.b')\nasync def g(e, c): pass\n"
        with pytest.raises(HandlerSetupError, match="cannot share a transaction"):
            load_handlers([module(text)])

    def test_plain_and_async_that_never_meet_are_fine(self, module, empty_registry):
        text = (
            "from workers import handler\n@handler('a.*')\ndef f(e, c): pass\n@handler('b.*')\nasync def g(e, c): pass\n"
            "@handler('a.*', at_least_once=True)\nasync def h(e, c): pass\n"
        )
        load_handlers([module(text)])
        assert len(list(empty_registry)) == 3


class TestTimes:
    POLICIES = """
[types."slow.*"]
max_handler_s = 600
[types."slow.quick"]
max_handler_s = 1
"""

    @pytest.mark.parametrize(
        ("pattern", "at_least_once", "refused"),
        [
            ("slow.report", True, False),
            ("slow.report", False, True),
            ("slow.quick", False, False),
            ("slow.*", False, True),
            ("*.report", False, True),
            ("order.*", False, False),
        ],
    )
    def test_a_transactional_handler_must_end_before_its_transaction_is_ended(self, tmp_path, pattern, at_least_once, refused):
        (tmp_path / "policies.toml").write_text(self.POLICIES)
        settings = load_settings({}, folder=tmp_path, **placeholder_urls())
        declared = [Handler(name="mine", pattern=pattern, function=lambda _event, _context: None, at_least_once=at_least_once)]
        expected = pytest.raises(HandlerSetupError, match=r"max_handler_s of slow\.\* is 600, and mine") if refused else nullcontext()
        with expected:
            check_times(declared, Policies.load(settings.policies, settings), lifetime_s=settings.transaction_lifetime_s)


class TestResults:
    @pytest.mark.parametrize(
        ("results", "kept"),
        [
            ([], None),
            ([None, None], None),
            ([None, 7, None], 7),
            ([0], 0),
            ([False], False),
            ([""], ""),
            ([1, "a"], [1, "a"]),
            ([(1, 2)], [1, 2]),
            ([{1: "a"}], {"1": "a"}),
            ([2**63 - 1], 2**63 - 1),
        ],
    )
    def test_what_is_kept(self, results, kept):
        found = checked_result(results)
        assert found == kept
        assert type(found) is type(kept)

    @pytest.mark.parametrize(
        "result",
        [object(), {1}, b"bytes", float("nan"), float("inf"), 2**63, {"a": {"b": [2**64]}}, "\ud800", {"a\x00": 1}, {"\ud800": 1}],
        ids=lambda result: "object()" if type(result) is object else repr(result),
    )
    def test_what_is_refused(self, result):
        with pytest.raises(ResultRefused):
            checked_result([result])

    def test_too_deep(self):
        deep: list[object] = []
        for _ in range(200):
            deep = [deep]
        with pytest.raises(ResultRefused):
            checked_result([deep])

    def test_too_deep_to_be_read_at_all(self):
        deep: list[object] = []
        for _ in range(100_000):
            deep = [deep]
        with pytest.raises(ResultRefused):
            checked_result([deep])
        while deep:  # taken apart by hand: the interpreter's own way recurses
            deep = deep[0]  # type: ignore[assignment]

    def test_size(self):
        assert checked_result(["x" * (MAX_RESULT_BYTES - 2)])
        with pytest.raises(ResultRefused, match="too large"):
            checked_result(["x" * (MAX_RESULT_BYTES - 1)])
