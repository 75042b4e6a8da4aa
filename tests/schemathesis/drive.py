#!/usr/bin/env python3
"""Runs schemathesis against a VMM, which needs a TCP port where the VMM has a Unix socket.

usage: drive.py --socket PATH --state STATE --tally FILE [OPTION OF SCHEMATHESIS...]
"""

import argparse
import asyncio
import contextlib
import os
import pathlib
import sys


async def copy(reader, writer):
    # Whoever goes first takes the other along.
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


async def forward(path, reader, writer):
    there_reader, there_writer = await asyncio.open_unix_connection(path)
    try:
        await asyncio.gather(copy(reader, there_writer), copy(there_reader, writer))
    finally:
        writer.close()
        there_writer.close()


async def run(arguments, options):
    here = pathlib.Path(__file__).parent
    server = await asyncio.start_server(lambda *ends: forward(arguments.socket, *ends), "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    api = f"http://{host}:{port}/api/v1"
    environment = os.environ | {
        "PYTHONPATH": str(here),
        "PYTHONDONTWRITEBYTECODE": "1",
        "VMM_SOCKET": arguments.socket,
        "VMM_STATE": arguments.state,
        "VMM_TALLY": arguments.tally,
    }
    schemathesis = pathlib.Path(sys.executable).parent / "schemathesis"
    command = [schemathesis, f"--config-file={here}/schemathesis.toml", "run", f"{api}/openapi.json", f"--url={api}"]
    # One stream has no end, one call ends the VMM, and one path is not below /api/v1: they have tests of their own.
    excluded = [f"--exclude-path={path}" for path in ("/vm.events", "/vmm.shutdown", "/metrics")]
    process = await asyncio.create_subprocess_exec(*command, *excluded, *options, env=environment)
    return await process.wait()


parser = argparse.ArgumentParser()
for name in ("socket", "state", "tally"):
    parser.add_argument(f"--{name}", required=True)
sys.exit(asyncio.run(run(*parser.parse_known_args())))
