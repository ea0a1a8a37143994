import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steptool.environments.toolbench.protocol import endpoint, endpoints, function_name
from steptool.records import Query, Reference


@pytest.mark.parametrize(
    ("api", "tool", "name", "sent"),
    [
        ("Forecast/Day", "Sky Watch", "forecast_day_for_sky_watch", ("sky_watch", "forecast_day")),
        ("/v2/{id}/", "--Tides--", "v2_id_for_tides", ("tides", "v2_id")),
        ("7 days", "24h", "get_7_days_for_get_24h", ("get_24h", "get_7_days")),
        ("from", "Trains", "is_from_for_trains", ("trains", "is_from")),
        ("Météo 👋", "été", "m_t_o_for_t", ("t", "m_t_o")),
        ("天气 now", "X", "___now_for_x", ("x", "天气_now")),
        ("a" * 80, "sky", "a" * 56 + "_for_sky", ("sky", "a" * 80)),
    ],
)
def test_names_follow_toolbench(api, tool, name, sent):
    assert function_name(api, tool) == name
    assert endpoint("Video, Images", tool, api) == ("Video, Images", *sent)


@given(st.text(), st.text())
def test_what_is_sent_has_the_same_function_name_and_is_its_own_standard_form(tool, api):
    sent = endpoint("Weather", tool, api)
    assert endpoint(*sent) == sent
    name = function_name(sent[2], sent[1])
    assert name == function_name(api, tool) and re.fullmatch("[a-z0-9_]{5,64}", name)


def test_a_query_leads_back_from_its_functions(query):
    assert endpoints(query) == {"forecast_for_sky_watch": ("Weather", "sky_watch", "forecast")}
    assert endpoints(Query("q", "train", "replay", "go", ())) == {}


@pytest.mark.parametrize("parts", [["Weather", "sky_watch"], "Weather", ["Weather", "sky_watch", 3], None])
def test_a_reference_of_another_form_is_refused_with_its_place(parts):
    with pytest.raises(ValueError, match=r"query q: reference\.toolbench\.f: expected \[category"):
        endpoints(Query("q", "train", "toolbench", "go", (), Reference(environment={"toolbench": {"f": parts}})))
