"""``python -m nex.agent.guest``: the agent as the first process of a microVM.

It makes the machine a place to live in, gets everything ready that is the same in every machine, opens its streams,
and waits there for the hello: this is where a machine may be snapshotted and cloned. The hello makes it somebody, and
it is an agent until its stream ends; then the machine does. What goes wrong is on the console.

The kernel's command line may say: ``nex.disk_mib=<n>``, what its workload may write; ``nex.net=<address>/<prefix>,
<gateway>,<resolver>,…``; ``nex.spare=0``, to do nothing beforehand, which pays in machines made of a snapshot only;
``nex.rehearse=1``, that those are emulated, where it pays to rehearse a workload before there is one.
"""

from __future__ import annotations

import contextlib
import gc
import traceback
from collections.abc import Mapping
from typing import NoReturn

from nex.agent import interfaces, kernel, mounts
from nex.agent.agent import live, new_runner
from nex.agent.place import Place
from nex.agent.ports import open_channels
from nex.agent.warm import prepare, start_spares, warm_runner
from nex.processes import Confinement
from nex.protocol.agent import Hello
from nex.providers.base import Provider

__all__ = ["main"]

_FRAMES = 20


def _settle(told: Mapping[str, str]) -> Confinement:
    """Make the machine what it should be; as whom its workload runs."""
    mounts.mount_storage(int(told.get("disk_mib", "0")))
    interfaces.raise_loopback()
    if network := told.get("net"):
        interfaces.bring_up(interfaces.Network.parse(network))
    kernel.harden()
    return mounts.confine()


def _live() -> int:
    kernel.hold_standard_files()
    mounts.mount_kernel()
    told = kernel.arguments()
    confinement = _settle(told)
    spares: tuple[type[Provider], ...] = ()
    rehearses = False
    if told.get("spare") == "0":
        runner = new_runner()
    else:
        prepare()
        rehearses = told.get("rehearse") == "1"
        with kernel.fixed_addresses() if rehearses else contextlib.nullcontext():
            spares = start_spares(confinement, each=2 if rehearses else 1)  # one of them for the rehearsal
        runner = warm_runner()
    gc.collect()
    gc.freeze()
    channels = open_channels()
    place = Place(mounts.WORK_FOLDER, channels, confinement, spares, rehearses)
    return live(lambda: Hello.decode(channels.hello()), place, runner, on_hello=kernel.renew)


def main() -> NoReturn:
    """Live, and end the machine whatever happens."""
    try:
        _live()
    except BaseException:  # noqa: BLE001 - the last line before the end: tell it
        traceback.print_exc(limit=_FRAMES)
    finally:
        kernel.restart()


if __name__ == "__main__":
    main()
