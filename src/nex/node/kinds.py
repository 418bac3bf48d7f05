"""What a configuration key may hold: each kind reads a value from a file and the same value as text.

A kind raises ``ValueError`` with words that complete "this key ..."; it never repeats a value that may be secret.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from nex.errors import RefusedError, UsageError
from nex.hostservices.registry import read_options
from nex.node.grants import check_bindings
from nex.protocol.base import Message
from nex.protocol.location import Location
from nex.protocol.subjects import is_pattern, is_token, is_workload_name
from nex.protocol.triggers import Trigger, check_triggers

__all__ = [
    "AutostartEntry",
    "AutostartList",
    "Flag",
    "Integer",
    "Kind",
    "Number",
    "PathName",
    "Services",
    "Table",
    "Text",
    "TextList",
    "node_name",
    "patterns",
]

_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class Kind(ABC):
    """One kind of value; ``type_name`` is what the reference calls it."""

    type_name: str

    def read(self, value: Any) -> Any:
        """The value as the node holds it; a text is taken as an environment variable or a flag gives it.

        Raises:
            ValueError: it is none of this kind.
        """
        return self._parse(value) if isinstance(value, str) else self._read(value)

    @abstractmethod
    def _read(self, value: Any) -> Any: ...

    def _parse(self, text: str) -> Any:
        return self._read(text)


class Text(Kind):
    """A text that passes ``check``, a function which raises ValueError."""

    type_name = "text"

    def __init__(self, check: Callable[[str], None] | None = None) -> None:
        self._check = check

    def _read(self, value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError("must be a text")  # noqa: TRY004 - one kind of error for every wrong value
        if self._check is not None:
            self._check(value)
        return value


class Integer(Kind):
    """A whole number within bounds."""

    type_name = "integer"

    def __init__(self, minimum: int = 0, maximum: int = 2**53) -> None:
        self._minimum, self._maximum = minimum, maximum

    def _read(self, value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError("must be a whole number")  # noqa: TRY004
        if not self._minimum <= value <= self._maximum:
            raise ValueError(f"must be between {self._minimum} and {self._maximum}")
        return value

    def _parse(self, text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ValueError("must be a whole number") from None
        return self._read(value)


class Number(Kind):
    """A number within bounds, whole or not."""

    type_name = "number"

    def __init__(self, minimum: float, maximum: float) -> None:
        self._minimum, self._maximum = minimum, maximum

    def _read(self, value: Any) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError("must be a number")  # noqa: TRY004
        if not self._minimum <= value <= self._maximum:
            raise ValueError(f"must be between {self._minimum:g} and {self._maximum:g}")
        return value

    def _parse(self, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ValueError("must be a number") from None
        return self._read(int(value) if value.is_integer() else value)


class Flag(Kind):
    """True or false."""

    type_name = "boolean"

    def _read(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError("must be true or false")  # noqa: TRY004
        return value

    def _parse(self, text: str) -> bool:
        try:
            return _WORDS[text.strip().lower()]
        except KeyError:
            raise ValueError("must be true or false") from None


class PathName(Kind):
    """A path; ``~`` is expanded."""

    type_name = "path"

    def _read(self, value: Any) -> Path:
        if not isinstance(value, str | Path) or not str(value):
            raise ValueError("must be a path")
        return Path(value).expanduser()


class TextList(Kind):
    """Texts; as one text they are separated by commas. ``check`` is applied to each."""

    type_name = "list of texts"

    def __init__(self, check: Callable[[str], None] | None = None) -> None:
        self._check = check

    def _read(self, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise ValueError("must be a list of texts")
        if self._check is not None:
            for item in value:
                self._check(item)
        return tuple(value)

    def _parse(self, text: str) -> tuple[str, ...]:
        return self._read([item.strip() for item in text.split(",") if item.strip()])


class Table(Kind):
    """Texts by name; as one text ``name=value,name=value``. ``of_texts=False`` allows any value, JSON as text."""

    type_name = "table"

    def __init__(self, *, of_texts: bool = True) -> None:
        self._of_texts = of_texts

    def _read(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            raise ValueError("must be a table")
        if self._of_texts and not all(isinstance(item, str) for item in value.values()):
            raise ValueError("must be a table of texts")
        return dict(value)

    def _parse(self, text: str) -> dict[str, Any]:
        if not self._of_texts:
            return self._read(_json(text))
        pairs = [item.partition("=") for item in text.split(",") if item.strip()]
        if not all(name.strip() and equals for name, equals, _ in pairs):
            raise ValueError("must be name=value pairs, separated by commas")
        return {name.strip(): value.strip() for name, _, value in pairs}


class Services(Table):
    """Options of host services by name, as `nex.hostservices.registry` reads them; JSON as text."""

    def __init__(self) -> None:
        super().__init__(of_texts=False)

    def _read(self, value: Any) -> dict[str, Any]:
        return read_options(super()._read(value))


class AutostartEntry(Message, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A workload that a node starts by itself. Its environment is secret and stands in clear in the file."""

    SECRET = frozenset({"environment"})
    name: str
    namespace: str = "default"
    type: str
    location: str
    argv: tuple[str, ...] = ()
    description: str = ""
    essential: bool = False
    jsdomain: str = ""
    environment: dict[str, str] = msgspec.field(default_factory=dict)
    trigger_subjects: tuple[str, ...] = ()
    triggers: tuple[Trigger, ...] = ()
    bindings: dict[str, str] = msgspec.field(default_factory=dict)
    timeout_ms: int | None = None
    memory_mib: int | None = None
    parallel: int | None = None
    cpus: float | None = None
    total_memory_mib: int | None = None
    pids: int | None = None
    disk_mib: int | None = None


class AutostartList(Kind):
    """A list of `AutostartEntry`; JSON as text."""

    type_name = "list of workloads"

    def _read(self, value: Any) -> tuple[AutostartEntry, ...]:
        if not isinstance(value, list | tuple):
            raise ValueError("must be a list of workloads")  # noqa: TRY004
        entries = []
        for index, item in enumerate(value):
            try:
                entry = msgspec.convert(item, AutostartEntry)
            except msgspec.ValidationError as error:
                raise ValueError(f"entry {index}: {error}") from None
            _check_entry(index, entry)
            entries.append(entry)
        return tuple(entries)

    def _parse(self, text: str) -> tuple[AutostartEntry, ...]:
        return self._read(_json(text))


def _check_entry(index: int, entry: AutostartEntry) -> None:
    if not is_workload_name(entry.name):
        raise ValueError(f"entry {index}: a workload's name is letters, digits, dashes and underscores")
    try:
        Location.from_url(entry.location)
    except UsageError as error:
        raise ValueError(f"entry {index}: {error}") from None
    if not is_token(entry.namespace):
        raise ValueError(f"entry {index}: namespace must be one token of a subject")
    if bad := [subject for subject in entry.trigger_subjects if not is_pattern(subject)]:
        raise ValueError(f"entry {index}: no subject to subscribe to: {bad[0]!r}")
    try:
        check_triggers(entry.triggers)
        check_bindings(entry.bindings, entry.namespace, None, {})
    except (UsageError, RefusedError) as error:
        raise ValueError(f"entry {index}: {error}") from None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise ValueError("must be JSON") from None


def node_name(text: str) -> None:
    """Check the name of a node, which names a folder too."""
    if not _NODE_NAME.fullmatch(text):
        raise ValueError("must be 1 to 64 letters, digits, dots, dashes and underscores")


def patterns(text: str) -> None:
    """Check a subject that may hold wildcards."""
    if not is_pattern(text):
        raise ValueError(f"holds {text!r}, which is no subject")
