"""The baseline: what anybody would write by hand with nats-py. Prints READY when it is subscribed."""

from __future__ import annotations

import asyncio
import os
import sys

import nats
import uvloop
from nats.aio.msg import Msg


async def main(url: str, subject: str) -> None:
    connection = await nats.connect(url, user_credentials=os.environ.get("NATS_CREDS"))

    async def echo(message: Msg) -> None:
        await message.respond(message.data)

    await connection.subscribe(subject, queue="echo", cb=echo)
    await connection.flush()
    print("READY", flush=True)
    await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2]))
