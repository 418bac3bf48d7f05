from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nex.errors import StartError
from nex.providers.native import child_environment
from nex.providers.wasm_worker import header_variables

NAMES = st.text("aAbB_1é", min_size=1, max_size=4)
HEADERS = st.dictionaries(st.text(min_size=1, max_size=8), st.text(max_size=8), max_size=6)


@given(st.dictionaries(NAMES, st.text("xyz"), max_size=6))
def test_every_pair_is_there_as_given_and_in_upper_case(pairs: dict[str, str]) -> None:
    environment = child_environment(pairs)
    assert {name: environment[name] for name in pairs} == pairs
    assert {name.upper() for name in pairs} <= set(environment)
    assert set(environment) <= set(pairs) | {name.upper() for name in pairs}


@pytest.mark.parametrize("pairs", [{"": ""}, {"a=": ""}, {"a\0": ""}, {"a": "secret\0"}])
def test_what_cannot_be_set_is_named_without_its_value(pairs: dict[str, str]) -> None:
    with pytest.raises(StartError) as failure:
        child_environment(pairs)
    assert "secret" not in str(failure.value)


@given(HEADERS)
def test_headers_cannot_become_other_variables(headers: dict[str, str]) -> None:
    for name, value in header_variables(headers).items():
        assert name.startswith("NEX_HEADER_")
        assert set(name) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
        assert "\0" not in value


def test_of_two_headers_with_one_name_the_first_counts() -> None:
    assert header_variables({"a-b": "1", "A_B": "2"}) == {"NEX_HEADER_A_B": "1"}
