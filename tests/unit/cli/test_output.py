import io
import json

from nex.cli.output import Output, clean, format_bytes


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_tables_are_aligned_and_plain_off_a_terminal() -> None:
    out = Output(as_json=False, out=io.StringIO(), err=io.StringIO())
    table = out.table(["name", "n"], [["a", 5], ["long-one", 1234], ["", 0]], numbers=("n",))
    assert table.split("\n") == ["NAME         N", "a            5", "long-one  1234", "-            0"]
    assert "\x1b" not in table


def test_colour_only_on_a_terminal_that_wants_it() -> None:
    assert "\x1b[1m" in Output(as_json=False, out=Terminal(), err=io.StringIO()).fields([("A", "b")])
    assert "\x1b" not in Output(as_json=False, out=io.StringIO(), err=io.StringIO()).fields([("A", "b")])


def test_json_is_all_that_a_program_gets() -> None:
    out, err = io.StringIO(), io.StringIO()
    printer = Output(as_json=True, out=out, err=err)
    printer.remark("for people")
    printer.result({"a": [1, "ü"]}, "text")
    assert json.loads(out.getvalue()) == {"a": [1, "ü"]}
    assert err.getvalue() == ""


def test_json_lines_are_lines() -> None:
    out = io.StringIO()
    printer = Output(as_json=True, out=out)
    printer.line({"text": "a\nb"}, "")
    printer.line({"text": "c"}, "")
    assert [json.loads(line)["text"] for line in out.getvalue().splitlines()] == ["a\nb", "c"]


def test_a_bar_is_drawn_on_a_terminal_and_taken_away() -> None:
    err = Terminal()
    with Output(as_json=False, out=io.StringIO(), err=err).progress("Uploading f") as bar:
        bar.update(512, 1024)
        bar.update(512, 1024)
        bar.update(1024, 1024)
    assert err.getvalue().count("50 %") == 1
    assert err.getvalue().endswith("\r\x1b[K")


def test_no_bar_off_a_terminal_or_for_programs() -> None:
    plain, terminal = io.StringIO(), Terminal()
    for as_json, err in ((False, plain), (True, terminal)):
        with Output(as_json=as_json, out=io.StringIO(), err=err).progress("Uploading f") as bar:
            bar.update(1, 2)
    assert plain.getvalue() == terminal.getvalue() == ""


def test_text_from_elsewhere_cannot_steer_the_terminal() -> None:
    assert clean("a\x1b[2Jb\r\nc\td") == "a?[2Jb??c\td"


def test_sizes() -> None:
    assert [format_bytes(n) for n in (0, 1023, 1536, 20 << 20, 3 << 30)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "20.0 MiB",
        "3.0 GiB",
    ]
