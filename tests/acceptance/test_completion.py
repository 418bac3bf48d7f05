import pytest

from .commands import Nex


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("nex no", {"node"}),
        ("nex node ", {"up", "preflight", "ls", "info", "probe", "lameduck"}),
        ("nex devrun --bucket", {"--bucketmaxbytes"}),
        ("nex completion ", {"bash", "zsh", "fish"}),
        ("nex node ls --name", {"--namespace"}),
    ],
)
async def test_words_are_completed(nex: Nex, words: str, offered: set[str]) -> None:
    nex.extra |= {
        "_NEX_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    result = await nex()
    assert {line.partition(",")[2] for line in result.out.splitlines()} == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_every_shell_has_its_script(nex: Nex, shell: str) -> None:
    assert "_NEX_COMPLETE" in (await nex.ok("completion", shell)).out
