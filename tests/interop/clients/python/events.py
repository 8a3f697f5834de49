"""What the programs in this folder share: commands as lines of JSON, answers as lines of JSON, and which lane is a subject's."""

import base64
import json
import sys

STRUCTURED = "application/cloudevents+json"


def lane(subject: str, lanes: int) -> int:
    """The lane of a subject: Kafka's hash (murmur2), as its default partitioner uses it."""
    data, mask, factor = subject.encode(), 0xFFFFFFFF, 0x5BD1E995
    hashed = 0x9747B28C ^ len(data)
    whole = len(data) - len(data) % 4
    for at in range(0, whole, 4):
        word = int.from_bytes(data[at : at + 4], "little") * factor & mask
        word = (word ^ word >> 24) * factor & mask
        hashed = (hashed * factor & mask) ^ word
    if whole < len(data):
        hashed = (hashed ^ int.from_bytes(data[whole:], "little")) * factor & mask
    hashed = (hashed ^ hashed >> 13) * factor & mask
    return ((hashed ^ hashed >> 15) & 0x7FFFFFFF) % lanes


def lane_of(message: dict, lanes: int) -> int:
    """The lane of a message: its subject's, or its id's if it has none."""
    attributes = message["attributes"]
    return lane(attributes.get("subject", attributes["id"]), lanes)


def structured(message: dict) -> bytes:
    """A message in one piece: the JSON format of CloudEvents."""
    return json.dumps({**message["attributes"], "data_base64": message["body"]}).encode()


def body_of(message: dict) -> bytes:
    return base64.b64decode(message["body"])


def seen(attributes: dict, headers: dict, body: bytes, lane: int) -> dict:
    """A message as it is told of."""
    return {"attributes": attributes, "headers": headers, "body": base64.b64encode(body).decode(), "lane": lane}


def asked():
    """The commands, each until the input ends."""
    for line in sys.stdin:
        yield json.loads(line)


def answer(what) -> None:
    print(json.dumps(what), flush=True)
