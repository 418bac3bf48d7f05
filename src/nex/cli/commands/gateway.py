"""`nex gateway`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from nex.cli.command import command, options, output
from nex.cli.daemon import run_daemon
from nex.cli.options import Options
from nex.cli.session import connect_options
from nex.gateway.config import BEARER_ENV, GatewayConfig, resolve
from nex.gateway.gateway import GatewayFace, Reload
from nex.gateway.gateway import run as run_gateway
from nex.gateway.routes import Route
from nex.node.signals import StopSignals
from nex.telemetry.logs import configure

__all__ = ["gateway"]

_FILE = click.Path(path_type=Path)


@command(
    "gateway",
    examples=(
        ("nex gateway --route 'POST /orders=orders.create' --route 'GET /orders/{id}=orders.get.{id}'", "two routes"),
        ("nex gateway --map orders", "POST /call/orders/create, and all else below that subject"),
        ("nex gateway --stream 'GET /feed/{topic}=feed.{topic}'", "a service's stream, such as server-sent events"),
        ("nex gateway --config gateway.toml --listen :8443 --https-cert chain.pem --https-key key.pem", "from a file"),
    ),
)
@click.option("--config", "file", type=_FILE, metavar="FILE", help="JSON, or TOML if it is called so; flags win.")
@click.option("--listen", metavar="HOST:PORT", help="Where HTTP is spoken. Default: 127.0.0.1:8080.")
@click.option(
    "--route",
    "routes",
    multiple=True,
    metavar="'METHOD /PATH=SUBJECT'",
    help="{name} in both stands for one segment and token, {name*} at the end for the rest; METHOD * is any.",
)
@click.option("--stream", "streams", multiple=True, metavar="'METHOD /PATH=SUBJECT'", help="Answers in many messages.")
@click.option("--map", "map", multiple=True, metavar="PREFIX", help="/call/A/B is the subject A.B, below this one.")
@click.option("--https-cert", "tls_cert", metavar="FILE", help="Certificate and its chain, PEM: HTTPS.")
@click.option("--https-key", "tls_key", metavar="FILE", help="Key of that certificate, PEM.")
@click.option("--bearer-file", metavar="FILE", help=f"Tokens, one a line: requests must carry one. Env {BEARER_ENV}.")
@click.option("--cors-origin", "cors_origins", multiple=True, metavar="ORIGIN", help="Pages of it may call; * is all.")
@click.option("--host", "hosts", multiple=True, metavar="NAME", help="A name it may be called by. Default: any.")
@click.option("--header", "headers", multiple=True, metavar="NAME", help="Functions see this header too; X-* is many.")
@click.option("--max-body", type=click.IntRange(0), metavar="BYTES", help="Largest body of a request.")
@click.option("--max-in-flight", type=click.IntRange(1), metavar="N", help="Requests under way. Default: 256.")
@click.option("--body-bucket", metavar="BUCKET", help="Object store for bodies that no message can hold.")
@click.option(
    "--reply-bucket", "reply_buckets", multiple=True, metavar="BUCKET", help="Functions may send its objects."
)
@click.option("--content-type", metavar="TYPE", help="Of answers that name none. Default: application/octet-stream.")
@click.option("--health", metavar="PATH", help="Says there whether the gateway works, such as /healthz.")
@click.option("--log-query", is_flag=True, help="Show queries in the access log.")
@click.option("--drain", metavar="DURATION", help="How long requests may take when the gateway ends. Default: 10s.")
def gateway(file: Path | None, routes: tuple[str, ...], streams: tuple[str, ...], **given: Any) -> int:
    """Put HTTP in front of functions and services, in this terminal, until Ctrl-C stops it gracefully.

    Each request becomes a NATS request to the subject of its route, and its answer the response. --timeout is how long
    an answer may take (default 30s). A second Ctrl-C does not wait for requests under way. SIGHUP has the file,
    tokens and certificate read again; if something is wrong with them, all stays as it was.
    """
    chosen = options()
    configure(chosen.loglevel, as_json=chosen.logjson)
    flagged = [Route.parse(text) for text in routes] + [Route.parse(text, stream=True) for text in streams]
    if chosen.timeout_given:
        given["timeout"] = f"{chosen.timeout_s:f}s"

    def read() -> GatewayConfig:
        return resolve(file=file, flags=given, routes=tuple(flagged), environ=os.environ)

    return run_daemon(_gateway(chosen, read(), read))


async def _gateway(chosen: Options, config: GatewayConfig, read: Callable[[], GatewayConfig]) -> int:
    out = output(chosen)

    def ready(face: GatewayFace) -> None:
        out.line({"ready": True, "url": face.url, "routes": face.routes}, f"Gateway is ready: {face.url}")

    reload = Reload(asyncio.Event(), read)
    signals = StopSignals(on_hangup=reload.asked.set)
    with signals.handled():
        return await run_gateway(
            config,
            connect=connect_options(chosen),
            gracefully=signals.gracefully,
            at_once=signals.at_once,
            on_ready=ready,
            reload=reload,
        )
