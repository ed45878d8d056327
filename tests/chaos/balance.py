"""The balance of a chaos run: what producers were promised against what the stores hold."""

from tests.chaos.doors import Doors
from tests.support.system import System


def check_balance(system: System, doors: Doors) -> str:
    """Check that everything promised was processed once, with its effect once, and that nothing else was.

    Returns:
        The numbers, in one line.

    Raises:
        AssertionError: something was lost, or happened twice; names the guarantee.
    """
    system.audit(effects=False)
    assert system.db.failures.count_documents({}) == 0, system.state()
    kinds = {d["_id"]: d["type"] for d in system.db.events.find({}, {"type": 1})}

    counted = {d["_id"]: d["n"] for d in system.db.effects.find()}
    wrong = {key: counted.get(key, 0) for key, kind in kinds.items() if counted.get(key, 0) != (kind != "plain")}
    assert not wrong, f"G2: effects not exactly once: {dict(list(wrong.items())[:5])} of {len(wrong)}"
    assert set(counted) <= set(kinds), "G2: effects of events that are not committed"

    strangers = set(kinds) - doors.tried - doors.ordered
    assert not strangers, f"events that nobody sent: {sorted(strangers)[:5]}"

    committed = {key for order in system.db.chaos_orders.find() for key in order["keys"]}
    processed = doors.ordered & set(kinds)
    assert processed == committed, f"G1: orders and their events are not there together: {sorted(processed ^ committed)[:5]}"
    assert doors.ordered & set(system.told) <= committed, "G1: a commit that succeeded is not there"

    unsure = len(kinds) - len(system.told)
    by_door = ", ".join(f"{door} {number}" for door, number in sorted(doors.took.items()))
    return f"{len(system.told)} keys promised ({by_door}), {unsure} more arrived · {len(kinds)} processed once · 0 lost · 0 twice"
