import sys

import pytest

from nex.cli import main, root


def test_ctrl_c_ends_the_command_quietly_wherever_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(args: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(root, "run", interrupted)
    monkeypatch.setattr(sys, "argv", ["nex", "node", "ls"])
    with pytest.raises(SystemExit) as raised:
        main.main()
    assert raised.value.code == 130
    assert capsys.readouterr() == ("", "")
