"""A program with pika that reads and writes the messages of channels. Argument: the URL."""

import sys

import pika
from events import STRUCTURED, answer, asked, body_of, lane_of, seen, structured

PREFIX = "cloudEvents_"
PATIENCE_SECONDS = 20


def listen(broker, channel: str, lanes: int) -> str:
    """A queue of its own for every lane of a channel."""
    queue = broker.queue_declare("", exclusive=True).method.queue
    for lane in range(lanes):
        broker.queue_bind(queue, f"tidegate/{channel}", str(lane))
    return queue


def read(broker, queue: str, count: int) -> list:
    found = []
    for method, properties, body in broker.consume(queue, auto_ack=True, inactivity_timeout=PATIENCE_SECONDS):
        if method is None:
            break
        attributes, headers = {}, {}
        for name, value in properties.headers.items():
            if name.startswith(PREFIX):
                attributes[name[len(PREFIX) :]] = value
            else:
                headers[name] = value
        if properties.content_type:
            attributes["datacontenttype"] = properties.content_type
        found.append(seen(attributes, headers, body, int(method.routing_key)))
        if len(found) == count:
            break
    broker.cancel()
    return found


def write(broker, channel: str, lanes: int, message: dict, prefix: str) -> None:
    attributes = dict(message["attributes"])
    kind = attributes.pop("datacontenttype", None)
    headers = {prefix + name: value for name, value in attributes.items()}
    body = body_of(message)
    if prefix == STRUCTURED:
        headers, kind, body = {}, STRUCTURED, structured(message)
    properties = pika.BasicProperties(headers={**headers, **message["headers"]}, content_type=kind, delivery_mode=2)
    broker.basic_publish(f"tidegate/{channel}", str(lane_of(message, lanes)), body, properties, mandatory=True)


def main() -> None:
    broker = pika.BlockingConnection(pika.URLParameters(sys.argv[1])).channel()
    # Whoever publishes waits until it is stored.
    broker.confirm_delivery()
    queue = None
    for command in asked():
        channel, lanes = command["channel"], command["lanes"]
        if command["do"] == "listen":
            queue = listen(broker, channel, lanes)
            answer([])
        elif command["do"] == "read":
            answer(read(broker, queue, command["count"]))
        else:
            for message in command["messages"]:
                write(broker, channel, lanes, message, {"binary": PREFIX, "letter": "cloudEvents:", "structured": STRUCTURED}[command["mode"]])
            answer([])


main()
