"""What all messages share: strict decoding with one clear error, and a repr that keeps secrets."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import msgspec

from nex.errors import MessageError

__all__ = ["Message"]


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """A JSON object on the wire. Unknown fields are ignored; fields named in ``SECRET`` never reach a repr."""

    SECRET: ClassVar[frozenset[str]] = frozenset()

    def encode(self) -> bytes:
        """The JSON bytes of this message; fields at their default are left out."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a message from JSON.

        Raises:
            MessageError: it is no JSON, a field is missing or has the wrong type; the text names the field.
        """
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise MessageError(str(error)) from error

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{name}=***" if name in self.SECRET else f"{name}={getattr(self, name)!r}"
            for name in self.__struct_fields__
        )
        return f"{type(self).__name__}({shown})"

    def __rich_repr__(self) -> Any:
        """Debuggers that know this protocol see no more than `repr`."""
        yield repr(self)
