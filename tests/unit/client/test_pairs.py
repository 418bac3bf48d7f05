import pytest

from nex.client.pairs import is_pair, parse_bindings, parse_environment
from nex.errors import UsageError


def test_pairs_split_at_the_first_of_either_sign() -> None:
    pairs = ["A=1", "B:2", "C=x:y=z", "D:x=y", "E=", "A=3", "F=two\nlines"]
    assert parse_environment(pairs) == {
        "A": "3",
        "B": "2",
        "C": "x:y=z",
        "D": "x=y",
        "E": "",
        "F": "two\nlines",
    }


@pytest.mark.parametrize("bad", ["plain-s3cret", "=s3cret", ":s3cret", ""])
def test_what_is_no_pair_is_refused_and_not_repeated(bad: str) -> None:
    assert not is_pair(bad)
    with pytest.raises(UsageError, match="argument 2 is not KEY=VALUE") as error:
        parse_environment(["A=1", bad])
    assert "s3cret" not in str(error.value)


def test_bindings_are_read_by_kind_and_name() -> None:
    assert parse_bindings(("kv:orders=ORDERS", "objectstore:files=A_b-1")) == {
        "kv:orders": "ORDERS",
        "objectstore:files": "A_b-1",
    }


@pytest.mark.parametrize("text", ["orders=ORDERS", "kv:orders", "kv:=A", "kv:a=", "stream:a=B", "kv:a=B.C"])
def test_what_is_no_binding_is_told(text: str) -> None:
    with pytest.raises(UsageError, match="KIND:NAME=BUCKET"):
        parse_bindings((text,))


def test_a_name_is_bound_to_one_bucket() -> None:
    assert parse_bindings(("kv:a=B", "kv:a=B")) == {"kv:a": "B"}
    with pytest.raises(UsageError, match="kv:a is bound twice, to B and to C"):
        parse_bindings(("kv:a=B", "kv:a=C"))
