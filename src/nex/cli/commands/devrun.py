"""`nex devrun` (also `nex yeet`)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from nex.cli.command import command, options, output, run
from nex.cli.options import Options
from nex.cli.session import Session, open_session
from nex.cli.workload import WorkloadFlags, describe, summary, workload_options
from nex.client.artifacts import Artifact, inspect
from nex.client.bundle import BUCKET, BUCKET_MAX_BYTES, Order, Signer, upload
from nex.client.keys import DeveloperKeys, default_folder
from nex.client.pairs import parse_environment
from nex.client.rollout import replace_copies, survey
from nex.protocol.location import Location

__all__ = ["DESCRIPTION", "devrun", "upload_shown"]

DESCRIPTION = "Workload published in devmode"


@command(
    "devrun",
    examples=(
        ("nex devrun hello.js", "a function, called at the subject hellojs"),
        ("nex devrun hello.ts --trigger_subject 'greet.*' GREETING=Hi", "with its own trigger and an environment"),
        ("nex devrun bill.js --stream ORDERS:orders.new --dead-letter failed.orders", "called for what a stream holds"),
        ("nex devrun report.js --cron '0 7 * * MON-FRI' --timezone Europe/Berlin", "called by the clock"),
        ("nex devrun ./echoservice --argv '--port 8080' --essential", "a service that is restarted when it fails"),
        ("nex devrun hello.js --json", "print what was deployed as JSON"),
    ),
)
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("environment", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--name", default="", metavar="NAME", help="Name of the workload. Default: the file's name without dots.")
@click.option("--stop/--no-stop", default=True, help="Replace running copies of the same name, on all nodes.")
@click.option(
    "--bucketmaxbytes",
    type=click.IntRange(1),
    default=BUCKET_MAX_BYTES,
    show_default=True,
    metavar="BYTES",
    help=f"Size of the object store {BUCKET}, if it has to be made.",
)
@workload_options
def devrun(file: Path, environment: tuple[str, ...], name: str, stop: bool, bucketmaxbytes: int, **flags: Any) -> None:
    """Deploy a file to the node with the fewest workloads. Nothing else is needed.

    The type is told by the file (a static 64-bit ELF executable is a service; JavaScript, TypeScript and WebAssembly
    are functions), the name by its name. Keys are made on first use in ~/.nex, the file goes to the object store
    NEXCLIFILES, and a running copy of the same name is replaced on whichever node it runs: a function without a gap,
    and not at all if the new one does not start; a service is stopped first.
    """
    chosen = options()
    run(
        _devrun(chosen, file, environment, name=name, stop=stop, max_bytes=bucketmaxbytes, flags=WorkloadFlags(**flags))
    )


async def _devrun(
    chosen: Options,
    file: Path,
    environment: tuple[str, ...],
    *,
    name: str,
    stop: bool,
    max_bytes: int,
    flags: WorkloadFlags,
) -> None:
    out = output(chosen)
    artifact = await asyncio.to_thread(inspect, file, type_hint=flags.wire_type, name=name)
    order = flags.order(
        name=artifact.name,
        type=artifact.type,
        location=Location.of(BUCKET, artifact.name),
        digest=artifact.digest,
        environment=parse_environment(environment),
        description=DESCRIPTION,
    )
    keys = DeveloperKeys(default_folder(), out.remark)
    async with open_session(chosen) as session:
        signer = Signer(keys.issuer(), keys.publisher())
        order = replace(order, jsdomain=session.domain)
        await _deploy(session, artifact, order, signer, stop=stop, max_bytes=max_bytes)
        if order.trigger_subjects and not flags.triggers:
            out.remark(f"No trigger subject was given; the function is called at its name, {order.name}")


async def _deploy(
    session: Session, artifact: Artifact, order: Order, signer: Signer, *, stop: bool, max_bytes: int
) -> None:
    client, out = session.client, session.out
    candidates, copies = await survey(client, artifact)
    uploaded = await upload_shown(session, artifact, max_bytes=max_bytes)
    replaced = copies if stop else []
    deployed = await replace_copies(client, candidates, replaced, order, signer, remark=out.remark)
    data = summary(deployed, client.namespace) | {
        "uploaded": uploaded,
        "replaced": [{"id": old.workload.id, "node_id": old.node_id} for old in replaced],
    }
    out.result({"workload": data}, out.fields(describe(deployed, session.options)))


async def upload_shown(session: Session, artifact: Artifact, *, max_bytes: int = BUCKET_MAX_BYTES) -> bool:
    """`upload` with a bar on the terminal."""
    with session.out.progress(f"Uploading {artifact.path.name}") as bar:
        return await upload(session.store(), artifact, max_bytes=max_bytes, on_progress=bar.update)
