import pytest

from steptool.chat.calls import annotate_tool
from steptool.records import Step, StepStatus, ToolCall
from steptool.rewards.data_flow import changes_state, tools_that_write


@pytest.mark.parametrize(
    ("name", "writes"),
    [
        ("delete_email", True), ("calendar.create_event", True), ("cancelReservation", True), ("lockDoors", True),
        ("update_reservation_flights", True), ("set_order_status", True), ("book_flight", True),
        ("message_login", True),
        ("get_order_details", False), ("search", False), ("book_details", False), ("share_price", False),
        ("exchange_rates_for_currency", False), ("displayCarStatus", False), ("check_and_update", False),
        ("latest_comments", False), ("finance", False),
    ],
)  # fmt: skip
def test_the_first_verb_of_the_name_decides(name, writes):
    assert changes_state(Step(ToolCall(name, {}), StepStatus.OK, '{"value": 7}'), {}) is writes


@pytest.mark.parametrize(
    ("observation", "writes"),
    [
        ("Email deleted successfully.", True),
        ('{"message": "the booking has been cancelled"}', True),
        ("17 degrees", False),
        ("The company has been founded in 1907. " * 10, False),  # data that speaks of changes
    ],
)
def test_without_a_verb_what_came_back_decides(observation, writes):
    assert changes_state(Step(ToolCall("mailbox", {}), StepStatus.OK, observation), {}) is writes


@pytest.mark.parametrize(
    ("name", "command", "writes"),
    [
        ("act", "take the brass lamp", True), ("act", "go east", True), ("act", "examine lamp", False),
        ("act", "inventory", False), ("run_shell", "rm notes.txt", True), ("execute", "grep -n rose notes.txt", False),
        ("act", "xyzzy", False), ("delete", "xyzzy", True),
    ],
)  # fmt: skip
def test_the_verb_of_a_command_goes_before_the_name(name, command, writes):
    assert changes_state(Step(ToolCall(name, {"command": command}), StepStatus.OK, "Done."), {}) is writes


def test_what_the_schema_says_goes_before_the_name():
    tools = [
        annotate_tool({"type": "function", "function": {"name": name, "parameters": {}}}, hint)
        for name, hint in (("delete_draft", True), ("get_ready", False), ("get_mail", None))
    ]
    hints = tools_that_write(tools)
    assert hints == {"delete_draft": False, "get_ready": True}
    steps = [Step(ToolCall(name, {}), StepStatus.OK, "") for name in ("delete_draft", "get_ready", "get_mail")]
    assert [changes_state(step, hints) for step in steps] == [False, True, False]


def test_what_failed_or_could_not_be_read_changes_nothing():
    failed = Step(ToolCall("delete_email", {}), StepStatus.TOOL_ERROR, "")
    assert not changes_state(failed, {}) and not changes_state(Step(None, StepStatus.MALFORMED, ""), {})
