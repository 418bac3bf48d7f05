"""The agent as the first process of a microVM, from where it may import what it likes: see `nex.agent.guest`."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Mapping

from nex.agent import interfaces, kernel, mounts
from nex.agent.agent import live, new_runner
from nex.agent.channels import Channels
from nex.agent.early import arguments, introduce, workload_types
from nex.agent.place import Place
from nex.agent.ports import open_channels
from nex.agent.warm import prepare, start_spares, warm_runner
from nex.processes import Confinement
from nex.providers.base import Provider

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nex.agent.early import Introduction

__all__ = ["live_in_machine"]


def live_in_machine(channels: Channels | None = None, introduction: Introduction | None = None) -> None:
    """Make the machine a place to live in, and be its agent.

    Args:
        channels: the streams, if they are open.
        introduction: what was said on them, if this machine has said that it is ready; else it gets ready first.
    """
    mounts.mount_kernel()
    told = arguments()
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
    types = workload_types()
    opened = channels or open_channels()
    place = Place(mounts.WORK_FOLDER, opened, confinement, spares, rehearses)
    live(lambda: introduction or introduce(opened, types, rehearses=rehearses), place, runner, on_hello=kernel.renew)


def _settle(told: Mapping[str, str]) -> Confinement:
    """Make the machine what it should be; as whom its workload runs."""
    mounts.mount_storage(int(told.get("disk_mib", "0")))
    interfaces.raise_loopback()
    if network := told.get("net"):
        interfaces.bring_up(interfaces.Network.parse(network))
    kernel.harden()
    return mounts.confine()
