import stat
from pathlib import Path

import pytest

from nex.client.keys import DeveloperKeys
from nex.errors import KeyFormatError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_keys_are_made_once_and_kept_private(tmp_path: Path) -> None:
    said: list[str] = []
    folder = tmp_path / ".nex"
    keys = DeveloperKeys(folder, said.append)
    issuer, publisher = keys.issuer(), keys.publisher()
    assert issuer.public.startswith("A")
    assert publisher.public.startswith("X")
    assert [mode(p) for p in (folder, folder / "issuer.nk", folder / "publisher.xk")] == [0o700, 0o600, 0o600]
    assert len(said) == 2
    assert not any(issuer.seed() in text or publisher.seed() in text for text in said)
    again = DeveloperKeys(folder, said.append)
    assert (again.issuer().public, again.publisher().public) == (issuer.public, publisher.public)
    assert len(said) == 2


def test_a_key_open_to_others_is_remarked_on_and_used(tmp_path: Path) -> None:
    said: list[str] = []
    keys = DeveloperKeys(tmp_path / ".nex", said.append)
    public = keys.issuer().public
    (tmp_path / ".nex" / "issuer.nk").chmod(0o644)
    said.clear()
    assert keys.issuer().public == public
    assert "chmod 600" in said[0]


def test_a_file_that_holds_no_seed_is_named(tmp_path: Path) -> None:
    (tmp_path / "issuer.nk").write_text("not a seed")
    with pytest.raises(KeyFormatError, match=r"issuer\.nk"):
        DeveloperKeys(tmp_path, print).issuer()
