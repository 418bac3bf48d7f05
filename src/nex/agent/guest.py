"""``python -m nex.agent.guest``: the agent as the first process of a microVM.

It opens its streams, waits there for the hello, which makes it somebody, and is an agent until its stream ends; then
the machine does. What goes wrong is on the console. What it does before it says that it is ready depends on the
machine: one that is to be snapshot and cloned does all that is the same in every machine and waits for its hello then,
one that boots for itself does nothing else, and gets ready for orders afterwards.

The kernel's command line may say: ``nex.disk_mib=<n>``, what its workload may write; ``nex.net=<address>/<prefix>,
<gateway>,<resolver>,…``; ``nex.spare=0``, this machine boots for itself; ``nex.rehearse=1``, those that do not are
emulated, where it pays to rehearse a workload before there is one.
"""

from __future__ import annotations

from nex.agent.early import arguments, hold_standard_files, introduce, workload_types
from nex.agent.ports import open_channels

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["main"]

_FRAMES = 20


def _live() -> None:
    hold_standard_files()
    channels = introduction = None
    if arguments().get("spare") == "0":
        channels = open_channels()
        introduction = introduce(channels, workload_types())

    from nex.agent.machine import live_in_machine  # noqa: PLC0415 - what takes long

    live_in_machine(channels, introduction)


def main() -> NoReturn:
    """Live, and end the machine whatever happens."""
    try:
        _live()
    except BaseException:  # noqa: BLE001 - the last line before the end: tell it
        import traceback  # noqa: PLC0415

        traceback.print_exc(limit=_FRAMES)
    finally:
        from nex.agent.kernel import restart  # noqa: PLC0415

        restart()


if __name__ == "__main__":
    main()
