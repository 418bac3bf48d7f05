import io
import json

import click
import pytest

from nex import errors as nex_errors
from nex.cli import errors

CASES = [
    (nex_errors.UsageError("bad flag", hint="do so"), 2, "usage"),
    (nex_errors.ConfigError((nex_errors.Problem("name", "flag", "is bad"),)), 2, "config"),
    (nex_errors.KeyFormatError("no seed"), 2, "key"),
    (nex_errors.RefusedError("No"), 3, "refused"),
    (nex_errors.NotFoundError("workload", "echo"), 4, "not_found"),
    (nex_errors.UnreachableError("nobody"), 5, "unreachable"),
    (nex_errors.DeadlineError("node", 2.0), 6, "deadline"),
    (nex_errors.MessageError("not JSON"), 1, "message"),
    (click.UsageError("No such option: --x."), 2, "usage"),
    (ValueError("boom"), 1, "failed"),
    (FileNotFoundError(2, "No such file or directory", "/x"), 1, "failed"),
]


def report(error: BaseException, *, as_json: bool = False, debug: bool = False) -> tuple[int, str]:
    stream = io.StringIO()
    return errors.report(error, stream=stream, as_json=as_json, debug=debug), stream.getvalue()


def int_of(text: str) -> int:
    raise ValueError(text)


@pytest.mark.parametrize(("error", "code", "word"), CASES)
def test_each_error_has_its_exit_code_and_one_line(error: Exception, code: int, word: str) -> None:
    found, text = report(error)
    assert found == code
    assert text.startswith("nex: ")
    assert "Traceback" not in text
    if not isinstance(error, nex_errors.ConfigError):
        assert text.count("\n") == 1


@pytest.mark.parametrize(("error", "code", "word"), CASES)
def test_each_error_is_one_json_document(error: Exception, code: int, word: str) -> None:
    found, text = report(error, as_json=True)
    document = json.loads(text)
    assert found == code
    assert document["error"]["code"] == word
    assert document["error"]["message"]


def test_the_unexpected_says_how_to_see_more_and_debug_shows_it() -> None:
    with pytest.raises(ValueError, match="two") as caught:
        int_of("two\nlines")
    _, text = report(caught.value)
    _, detail = report(caught.value, debug=True)
    assert text == "nex: unexpected ValueError: two lines; see where it came from with --loglevel debug\n"
    assert "Traceback" in detail
    assert "test_errors.py" in detail


def test_of_a_group_the_telling_one_is_reported() -> None:
    inner = ExceptionGroup("tasks", [ValueError("x"), nex_errors.RefusedError("No")])
    assert report(ExceptionGroup("outer", [inner])) == (3, "nex: No\n")
    assert report(ExceptionGroup("outer", [ValueError("x")]))[0] == 1


def test_of_a_console_the_last_lines_are_enough() -> None:
    error = nex_errors.MachineError("the machine ended", console="\nOSError: no room\n")
    assert report(error) == (1, "nex: the machine ended; it printed last: OSError: no room\n")
    error = nex_errors.MachineError("the machine ended", console="\n".join(f"line  {n}" for n in range(20)))
    text = report(error)[1]
    assert text.startswith("nex: the machine ended; it printed last: \n  line 12\n  line 13\n")
    assert text.endswith("\n  line 19\n")
    assert "line  0" in report(error, debug=True)[1]


def test_interruption_is_silent() -> None:
    assert report(click.Abort()) == (130, "")
    assert report(KeyboardInterrupt()) == (130, "")


def test_programs_get_every_problem_of_a_configuration_by_itself() -> None:
    problems = (nex_errors.Problem("name", "flag", "is bad"), nex_errors.Problem("tags", "node.json", "is worse"))
    _, text = report(nex_errors.ConfigError(problems), as_json=True)
    assert json.loads(text)["error"]["problems"] == [
        {"key": "name", "source": "flag", "text": "is bad"},
        {"key": "tags", "source": "node.json", "text": "is worse"},
    ]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(28, "No space left on device"), "nex: no space left on the device\n"),
        (OSError(28, "No space left on device", "/x"), "nex: no space left on the device for /x\n"),
    ],
)
def test_a_full_disk_is_nothing_unexpected(error: OSError, text: str) -> None:
    assert report(error) == (1, text)
