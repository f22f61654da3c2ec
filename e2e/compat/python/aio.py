"""aiokafka as a client of the compatibility suite."""
import asyncio
import signal
import sys

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError

import wire


def feature(call):
    return lambda o: asyncio.run(call(o))


async def produce(o):
    codec = o.get("codec", "none")
    conf = {"bootstrap_servers": o["bootstrap"], "acks": "all", "linger_ms": 5, "request_timeout_ms": 60000,
            "compression_type": None if codec == "none" else codec, "enable_idempotence": o.get("idempotent") == "true"}
    if "max" in o:
        conf["max_request_size"] = int(o["max"])
    p, futures = AIOKafkaProducer(**conf), []
    count, size, rate = int(o["count"]), int(o.get("size", 0)), int(o.get("rate", 0))
    await p.start()
    try:
        for i in range(count):
            f = await p.send(o["topic"], key=b"k%d" % (i % 10), value=wire.value(o["prefix"], i, size), headers=wire.headers(o))
            f.add_done_callback(lambda f, i=i: f.exception() or wire.acked(o["prefix"], i, f.result().partition, f.result().offset))
            futures.append(f)
            if rate:
                await asyncio.sleep(1.0 / rate)
        await asyncio.gather(*futures)
    finally:
        await p.stop()


def show(r):
    wire.record(r.partition, r.offset, r.key, r.value, r.headers)


async def consume(o):
    c = AIOKafkaConsumer(bootstrap_servers=o["bootstrap"], group_id=None, auto_offset_reset="earliest", enable_auto_commit=False)
    await c.start()
    try:
        # Its metadata names the topic only after it was asked for.
        await c._client.add_topic(o["topic"])
        tps = [TopicPartition(o["topic"], p) for p in c.partitions_for_topic(o["topic"])]
        c.assign(tps)
        await c.seek_to_beginning(*tps)
        left = int(o["count"])
        while left > 0:
            for records in (await c.getmany(timeout_ms=500)).values():
                for r in records:
                    show(r)
                    left -= 1
    finally:
        await c.stop()


class Listener(ConsumerRebalanceListener):
    async def on_partitions_revoked(self, revoked):
        pass

    async def on_partitions_assigned(self, assigned):
        wire.emit(event="assigned", partitions=sorted(tp.partition for tp in assigned))


async def group(o):
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    c = AIOKafkaConsumer(bootstrap_servers=o["bootstrap"], group_id=o["group"], auto_offset_reset="earliest",
                         enable_auto_commit=False, session_timeout_ms=6000, heartbeat_interval_ms=500)
    await c.start()
    try:
        c.subscribe([o["topic"]], listener=Listener())
        while not stop.is_set():
            batches = await c.getmany(timeout_ms=300)
            for records in batches.values():
                for r in records:
                    show(r)
            if not batches:
                continue
            try:
                await c.commit()
                wire.emit(event="committed")
            except KafkaError as e:
                wire.emit(event="notice", error=repr(e))
    finally:
        await c.stop()


def with_admin(call):
    async def run(o):
        a = AIOKafkaAdminClient(bootstrap_servers=o["bootstrap"], request_timeout_ms=15000)
        await a.start()
        try:
            await call(a, o)
        finally:
            await a.close()
    return feature(run)


def check(response):
    """Raises the first error of an answer, which the library leaves to its callers."""
    for field in ("topic_errors", "topic_error_codes", "resources"):
        for entry in getattr(response, field, []):
            code = entry[0] if field == "resources" else entry[1]
            if code:
                raise RuntimeError("error code %d: %r" % (code, entry))


async def create_topic(a, o):
    config = {o["name"]: o["value"]} if "name" in o else {}
    check(await a.create_topics([NewTopic(o["topic"], int(o["partitions"]), 3, topic_configs=config)]))


async def describe_topic(a, o):
    (t,) = await a.describe_topics([o["topic"]])
    wire.emit(event="result", partitions=len(t["partitions"]), replicas=len(t["partitions"][0]["replicas"]))


async def create_partitions(a, o):
    check(await a.create_partitions({o["topic"]: NewPartitions(int(o["partitions"]))}))


async def describe_config(a, o):
    for response in await a.describe_configs([ConfigResource(ConfigResourceType.TOPIC, o["topic"])]):
        check(response)
        for entry in response.resources[0][4]:
            if entry[0] == o["name"]:
                wire.emit(event="result", value=entry[1])


async def alter_config(a, o):
    resource = ConfigResource(ConfigResourceType.TOPIC, o["topic"], configs={o["name"]: o["value"]})
    for response in await a.alter_configs([resource]):
        check(response)


async def list_groups(a, o):
    wire.emit(event="result", groups=[g[0] for g in await a.list_consumer_groups()])


async def describe_group(a, o):
    (response,) = await a.describe_consumer_groups([o["group"]])
    wire.emit(event="result", members=len(response.groups[0][5]))


async def delete_group(a, o):
    raise wire.Unsupported("its admin client deletes no groups")


async def delete_records(a, o):
    await a.delete_records({TopicPartition(o["topic"], int(o["partition"])): RecordsToDelete(before_offset=int(o["offset"]))})


async def delete_topic(a, o):
    check(await a.delete_topics([o["topic"]]))


FEATURES = {
    "produce": feature(produce), "consume": feature(consume), "group": feature(group),
    "create-topic": with_admin(create_topic), "describe-topic": with_admin(describe_topic),
    "create-partitions": with_admin(create_partitions), "describe-config": with_admin(describe_config),
    "alter-config": with_admin(alter_config), "delete-records": with_admin(delete_records),
    "list-groups": with_admin(list_groups), "describe-group": with_admin(describe_group),
    "delete-group": with_admin(delete_group), "delete-topic": with_admin(delete_topic),
}

if __name__ == "__main__":
    wire.serve(FEATURES, sys.argv[1:])
