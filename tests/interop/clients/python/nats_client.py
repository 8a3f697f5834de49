"""A program with nats-py that reads and writes the messages of channels. Argument: the URL."""

import asyncio
import sys
from urllib.parse import quote, unquote

import nats
from events import STRUCTURED, answer, asked, body_of, lane_of, seen, structured
from nats.js.api import ConsumerConfig, DeliverPolicy

PREFIX = "ce-"
PATIENCE_SECONDS = 20


def encoded(value: str) -> str:
    """As the binding of CloudEvents wants it: space, the double quote, the percent sign and what is not printable ASCII."""
    return "".join(c if "!" <= c <= "~" and c not in '"%' else quote(c, safe="") for c in value)


def read_one(message, channel: str) -> dict:
    attributes, headers = {}, {}
    for name, value in (message.headers or {}).items():
        if name.lower().startswith(PREFIX):
            attributes[name[len(PREFIX) :].lower()] = unquote(value)
        elif not name.startswith("Nats-"):
            headers[name] = unquote(value)
    return seen(attributes, headers, message.data, int(message.subject.removeprefix(f"tidegate.{channel}.")))


async def read(stream, channel: str, count: int) -> list:
    config = ConsumerConfig(deliver_policy=DeliverPolicy.ALL)
    found = []
    # A consumer of its own that nobody else sees.
    consumer = await stream.pull_subscribe(
        f"tidegate.{channel}.*", stream=f"tidegate-{channel.replace('.', '~')}", config=config
    )
    while len(found) < count:
        try:
            for message in await consumer.fetch(count - len(found), timeout=PATIENCE_SECONDS):
                await message.ack()
                found.append(read_one(message, channel))
        except nats.errors.TimeoutError:
            break
    return found


async def write(stream, channel: str, lanes: int, message: dict, mode: str) -> None:
    headers = {PREFIX + name: encoded(value) for name, value in message["attributes"].items()}
    body = body_of(message)
    if mode == "structured":
        headers, body = {"content-type": STRUCTURED}, structured(message)
    for name, value in message["headers"].items():
        headers[name] = encoded(value)
    await stream.publish(f"tidegate.{channel}.{lane_of(message, lanes)}", body, headers=headers)


async def main() -> None:
    broker = await nats.connect(sys.argv[1])
    stream = broker.jetstream()
    for command in asked():
        channel = command["channel"]
        if command["do"] == "read":
            answer(await read(stream, channel, command["count"]))
        else:
            for message in command["messages"]:
                await write(stream, channel, command["lanes"], message, command["mode"])
            answer([])
    await broker.close()


asyncio.run(main())
