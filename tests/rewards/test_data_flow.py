import pytest

from steptool.chat.messages import annotate_tool
from steptool.records import Step, StepStatus, StopReason, ToolCall
from steptool.rewards.annotators import DataFlowRules, OverlapRules
from steptool.rewards.data_flow import changes_state, find_writing_tools


def contributions(query, trajectory, rules=None):
    return [score.contribution for score in (rules or DataFlowRules()).annotate(query, trajectory)]


def test_values_that_reach_the_answer_through_later_calls_count(make_query, make_step, make_trajectory):
    trajectory = make_trajectory(
        [
            make_step("find_user", {"user_id": "usr_03"}, name="mira chen"),
            make_step("get_weather", {"temperature": 17}, city="oslo"),
            make_step("last_order", {"order_id": "ord_07"}, user_id="usr_03"),
            make_step("cancel_order", {"refund_id": "ref_12"}, order_id="ord_07"),
        ],
        answer="Done: ref_12.",
    )
    assert contributions(make_query(), trajectory) == [1, 0, 1, 1, None]


EMAIL = [{"email_id": "00000479", "subject": "Update on Expo"}]


@pytest.fixture
def mail(make_step):
    """Looks up an email and deletes it."""
    return [
        make_step("search", EMAIL, query="nadia"),
        make_step("delete", "Email deleted successfully.", email_id="00000479"),
    ]


def test_a_change_that_was_asked_for_is_paid_with_the_look_that_it_needed(mail, make_query, make_trajectory):
    query = make_query(instruction="Delete my last email from nadia.")
    answer = "I have deleted the last email from Nadia."
    assert contributions(query, make_trajectory(mail, answer)) == [1, 1, None]
    assert contributions(query, make_trajectory([*mail, mail[1]], answer)) == [1, 1, 0, None]  # a repeat
    assert contributions(query, make_trajectory(mail)) == [0, 0]  # nothing was answered
    gave_up = make_trajectory(mail, stop_reason=StopReason.GAVE_UP)
    assert contributions(query, gave_up) == [0, 0]


def test_a_change_made_without_looking_is_not_paid_though_the_answer_quotes_it(
    mail, make_query, make_step, make_trajectory
):
    query = make_query(instruction="Cancel the last order of mira chen.")
    blind = make_step("cancel_order", {"refund_id": "ref_12"}, order_id="ord_07")
    assert contributions(query, make_trajectory([blind], "ref_12")) == [0, None]
    lookup = make_step("last_order", {"order_id": "ord_07"}, user="mira chen")
    assert contributions(query, make_trajectory([blind, lookup], "ref_12")) == [0, 0, None]  # looked up too late
    assert contributions(query, make_trajectory([lookup, blind], "ref_12")) == [1, 1, None]
    named = make_query(instruction="Cancel order ord_07.")
    assert contributions(named, make_trajectory([blind], "done")) == [1, None]
    failed = make_step("cancel_order", {"error": "already shipped"}, order_id="ord_07")
    assert contributions(named, make_trajectory([failed], "done")) == [0, None]


def test_what_the_user_says_later_and_what_a_change_returned_is_known(make_query, make_step, make_trajectory):
    steps = [
        make_step("create_ticket", {"ticket_id": "tck_31"}, title="No heating"),
        make_step("assign_ticket", {"assigned": True}, ticket_id="tck_31", email="ana@example.com"),
    ]
    turns = [{"role": "user", "content": text} for text in ("Open a ticket.", "Give it to ana@example.com.")]
    query = make_query(instruction="Open a ticket.")
    assert contributions(query, make_trajectory(steps, "done", messages=turns)) == [1, 1, None]
    assert contributions(query, make_trajectory(steps, "done", messages=turns[:1])) == [1, 0, None]


def test_the_schema_says_which_tools_change_something(make_query, make_step, make_trajectory):
    def tool(name, reads):
        return annotate_tool({"type": "function", "function": {"name": name, "parameters": {}}}, reads)

    steps = [make_step("count", 3, item="spoon"), make_step("ready", "ok", item="spoon")]
    query = make_query(instruction="Get the spoons ready.", tools=(tool("count", True), tool("ready", False)))
    assert contributions(query, make_trajectory(steps, "done")) == [1, 1, None]  # looked at before acting
    assert contributions(make_query(), make_trajectory(steps, "done")) == [0, 0, None]


def test_a_chain_that_leads_nowhere_contributes_nothing(make_query, make_step, make_trajectory):
    trajectory = make_trajectory(
        [
            make_step("find_user", {"user_id": "usr_03"}, name="mira chen"),
            make_step("last_order", {"order_id": "ord_07"}, user_id="usr_03"),
        ],
        answer="done",
    )
    assert contributions(make_query(), trajectory) == [0, 0, None]


def test_looking_at_a_thing_before_acting_on_it_counts_once(make_query, make_step, make_trajectory):
    look = make_step("get_order", {"status": "pending", "total": 81}, order_id="ord_07")
    act = make_step("cancel_order", {"refund_id": "ref_12"}, order_id="ord_07")
    assert contributions(make_query(), make_trajectory([look, look, act], "ref_12")) == [1, 0, 1, None]
    assert contributions(make_query(), make_trajectory([act, look], "ref_12")) == [0, 0, None]
    elsewhere = make_step("get_order", {"status": "pending", "total": 81}, order_id="ord_08")
    assert contributions(make_query(), make_trajectory([elsewhere, act], "ref_12")) == [0, 0, None]


def test_what_was_known_before_is_no_contribution(make_query, make_step, make_trajectory):
    query = make_query(instruction="what does product pro_05 cost in oslo?")
    echo = make_step("get_product", {"product_id": "pro_05", "city": "Oslo"}, product_id="pro_05")
    again = make_step("find_price", {"price": 40}, product_id="pro_05")
    repeated_value = make_step("list_price", {"price": 40}, item="pro_05", verbose=True)
    trajectory = make_trajectory([echo, again, repeated_value], "pro_05 costs 40 in oslo")
    assert contributions(query, trajectory) == [0, 1, 0, None]


def test_the_same_word_about_another_thing_is_news(make_query, make_step, make_trajectory):
    one, other = (make_step("get_order", {"status": "pending"}, order_id=f"ord_0{n}") for n in (1, 2))
    ticket = make_step("get_ticket", {"user_id": "usr_20", "severity": "major"}, ticket_id="tck_04")
    event = make_step("get_event", {"host_id": "usr_20"}, event_id="evt_08")
    last = make_step("last_order", {"order_id": "ord_09"}, user_id="usr_20")
    assert contributions(make_query(), make_trajectory([one, other], "pending; pending")) == [1, 1, None]
    assert contributions(make_query(), make_trajectory([ticket, event, last], "ord_09")) == [1, 1, 1, None]


def test_the_overlap_rule_has_its_threshold_at_three_tenths(make_query, make_step, make_trajectory):
    for answer, expected in (("abc", 1), ("ab", 0)):
        trajectory = make_trajectory([make_step("f", "abcdefghij")], answer)
        assert contributions(make_query(), trajectory, OverlapRules()) == [expected, None]


def test_the_overlap_rule_misses_short_structures_that_data_flow_sees(make_query, make_step, make_trajectory):
    trajectory = make_trajectory(
        [
            make_step("last_order", {"order_id": "ord_07"}, user_id="usr_03"),
            make_step("cancel_order", {"refund_id": "ref_12"}, order_id="ord_07"),
        ],
        answer="12",
    )
    assert contributions(make_query(), trajectory, OverlapRules()) == [0, 0, None]
    assert contributions(make_query(), make_trajectory(trajectory.steps[:2], "ref_12")) == [1, 1, None]


def test_a_change_whose_number_the_answer_invents_is_not_paid(make_query, make_step, make_trajectory):
    query = make_query(instruction="Cancel order ord_07 and say what ord_08 cost.")
    steps = [
        make_step("cancel_order", {"refund_id": "ref_12"}, order_id="ord_07"),
        make_step("get_order", {"total": 81}, order_id="ord_08"),
    ]
    assert contributions(query, make_trajectory(steps, "ref_12; 81")) == [1, 1, None]
    assert contributions(query, make_trajectory(steps, "ref_99; 81")) == [0, 1, None]
    assert contributions(query, make_trajectory(steps, "ref_12; 50")) == [1, 0, None]  # its number is told
    assert contributions(query, make_trajectory(steps, "cancelled; 50")) == [0, 0, None]
    # Prose may leave a number out, and may hold numbers that it has counted.
    answer = "I have cancelled your order within 2 minutes; the other one cost 81."
    assert contributions(query, make_trajectory(steps, answer)) == [1, 1, None]
    invented = "I have cancelled your order, the refund is ref_99; the other one cost 81."
    assert contributions(query, make_trajectory(steps, invented)) == [0, 1, None]


def test_a_change_made_again_counts_where_it_did_something_else(make_query, make_step, make_trajectory):
    def go(room):
        return make_step("act", f"You are in the {room}.", command="go north")

    rooms = [go("hall"), go("attic"), go("hall"), go("attic")]
    assert contributions(make_query(), make_trajectory(rooms, "done")) == [1, 1, 0, 0, None]
    tickets = [make_step("create_ticket", {"ticket_id": f"tck_{n}"}, title="No heating") for n in (31, 32)]
    assert contributions(make_query(), make_trajectory(tickets, "done")) == [1, 0, None]


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
    hints = find_writing_tools(tools)
    assert hints == {"delete_draft": False, "get_ready": True}
    steps = [Step(ToolCall(name, {}), StepStatus.OK, "") for name in ("delete_draft", "get_ready", "get_mail")]
    assert [changes_state(step, hints) for step in steps] == [False, True, False]


def test_what_failed_or_could_not_be_read_changes_nothing():
    failed = Step(ToolCall("delete_email", {}), StepStatus.TOOL_ERROR, "")
    assert not changes_state(failed, {}) and not changes_state(Step(None, StepStatus.MALFORMED, ""), {})
