"""A program with redis-py that reads and writes the messages of channels. Argument: the URL."""

import sys
import time

import redis
from events import STRUCTURED, answer, asked, body_of, lane_of, seen, structured

PREFIX = "ce_"
PATIENCE_SECONDS = 20


def key(channel: str, lane: int) -> str:
    return f"tidegate:{{{channel}}}:lane:{lane}"


def read(broker, channel: str, lanes: int, count: int) -> list:
    """From the beginning, by a group of its own in every lane."""
    streams = {key(channel, lane): ">" for lane in range(lanes)}
    for stream in streams:
        broker.xgroup_create(stream, "other-program", id="0", mkstream=True)
    found, until = [], time.monotonic() + PATIENCE_SECONDS
    while len(found) < count and time.monotonic() < until:
        for stream, entries in broker.xreadgroup("other-program", "one", streams, block=500):
            for entry, fields in entries:
                broker.xack(stream, "other-program", entry)
                body, attributes, headers = fields.pop(b"data", b""), {}, {}
                for name, value in fields.items():
                    name, value = name.decode(), value.decode()
                    if name.startswith(PREFIX):
                        attributes[name[len(PREFIX) :]] = value
                    else:
                        headers[name] = value
                found.append(seen(attributes, headers, body, int(stream.decode().rsplit(":", 1)[1])))
    return found


def write(broker, channel: str, lanes: int, message: dict, mode: str) -> None:
    fields = {PREFIX + name: value for name, value in message["attributes"].items()}
    body = body_of(message)
    if mode == "structured":
        fields, body = {"content-type": STRUCTURED}, structured(message)
    broker.xadd(key(channel, lane_of(message, lanes)), {**fields, **message["headers"], "data": body})


def main() -> None:
    broker = redis.Redis.from_url(sys.argv[1])
    for command in asked():
        channel, lanes = command["channel"], command["lanes"]
        if command["do"] == "read":
            answer(read(broker, channel, lanes, command["count"]))
        else:
            for message in command["messages"]:
                write(broker, channel, lanes, message, command["mode"])
            answer([])


main()
