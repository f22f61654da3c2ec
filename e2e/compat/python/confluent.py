"""confluent-kafka (librdkafka) as a client of the compatibility suite."""
import sys

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewPartitions, NewTopic,
                                   ResourceType)
import confluent_kafka

import wire


def produce(o):
    conf = {"bootstrap.servers": o["bootstrap"], "acks": "all", "linger.ms": 5,
            "compression.type": o.get("codec", "none"), "message.timeout.ms": 60000,
            "enable.idempotence": o.get("idempotent") == "true"}
    if "max" in o:
        conf["message.max.bytes"] = int(o["max"])
    p, failed = Producer(conf), []
    count, size, rate = int(o["count"]), int(o.get("size", 0)), int(o.get("rate", 0))

    def report(i):
        def on(err, msg):
            if err is not None:
                failed.append(KafkaException(err))
            else:
                wire.acked(o["prefix"], i, msg.partition(), msg.offset())
        return on

    for i in range(count):
        p.produce(o["topic"], key="k%d" % (i % 10), value=wire.value(o["prefix"], i, size),
                  headers=wire.headers(o), on_delivery=report(i))
        p.poll(1.0 / rate if rate else 0)
    p.flush()
    if failed:
        raise failed[0]


def show(m):
    if m.error():
        raise KafkaException(m.error())
    wire.record(m.partition(), m.offset(), m.key(), m.value(), m.headers())


def consume(o):
    c = Consumer({"bootstrap.servers": o["bootstrap"], "group.id": "unused", "enable.auto.commit": False,
                  "auto.offset.reset": "earliest"})
    try:
        parts = c.list_topics(o["topic"], timeout=10).topics[o["topic"]].partitions
        c.assign([TopicPartition(o["topic"], p, confluent_kafka.OFFSET_BEGINNING) for p in parts])
        left = int(o["count"])
        while left > 0:
            m = c.poll(0.5)
            if m is None:
                continue
            if m.error() and m.error().retriable():
                continue
            show(m)
            left -= 1
    finally:
        c.close()


def group(o):
    c = Consumer({"bootstrap.servers": o["bootstrap"], "group.id": o["group"], "enable.auto.commit": False,
                  "auto.offset.reset": "earliest", "session.timeout.ms": 6000, "heartbeat.interval.ms": 500})
    try:
        c.subscribe([o["topic"]], on_assign=lambda _, ps: wire.emit(event="assigned", partitions=sorted(p.partition for p in ps)))
        while not wire.stopped.is_set():
            ms = c.consume(500, 0.3)
            seen = 0
            for m in ms:
                if m.error():
                    wire.emit(event="notice", error=str(m.error()))
                    continue
                show(m)
                seen += 1
            if seen == 0:
                continue
            try:
                for tp in c.commit(asynchronous=False):
                    if tp.error:
                        raise KafkaException(tp.error)
                wire.emit(event="committed")
            except KafkaException as e:
                wire.emit(event="notice", error=str(e))
    finally:
        c.close()


def with_admin(call):
    def feature(o):
        # Held until the call has returned: collected earlier, it gives its calls up.
        a = AdminClient({"bootstrap.servers": o["bootstrap"]})
        call(a, o)
        a.poll(0)
    return feature


def wait(futures):
    for f in futures.values():
        f.result(20)


def create_topic(a, o):
    config = {o["name"]: o["value"]} if "name" in o else {}
    wait(a.create_topics([NewTopic(o["topic"], int(o["partitions"]), 3, config=config)]))


def describe_topic(a, o):
    f = a.describe_topics(confluent_kafka.TopicCollection([o["topic"]]))
    d = f[o["topic"]].result(20)
    wire.emit(event="result", partitions=len(d.partitions), replicas=len(d.partitions[0].replicas))


def create_partitions(a, o):
    wait(a.create_partitions([NewPartitions(o["topic"], int(o["partitions"]))]))


def describe_config(a, o):
    (f,) = a.describe_configs([ConfigResource(ResourceType.TOPIC, o["topic"])]).values()
    wire.emit(event="result", value=f.result(20)[o["name"]].value)


def alter_config(a, o):
    entry = ConfigEntry(o["name"], o["value"], incremental_operation=AlterConfigOpType.SET)
    wait(a.incremental_alter_configs([ConfigResource(ResourceType.TOPIC, o["topic"], incremental_configs=[entry])]))


def delete_records(a, o):
    wait(a.delete_records([TopicPartition(o["topic"], int(o["partition"]), int(o["offset"]))]))


def list_groups(a, o):
    r = a.list_consumer_groups().result(20)
    if r.errors:
        raise r.errors[0]
    wire.emit(event="result", groups=[g.group_id for g in r.valid])


def describe_group(a, o):
    d = a.describe_consumer_groups([o["group"]])[o["group"]].result(20)
    wire.emit(event="result", members=len(d.members))


def delete_group(a, o):
    wait(a.delete_consumer_groups([o["group"]]))


def delete_topic(a, o):
    wait(a.delete_topics([o["topic"]]))


FEATURES = {
    "produce": produce, "consume": consume, "group": group,
    "create-topic": with_admin(create_topic), "describe-topic": with_admin(describe_topic),
    "create-partitions": with_admin(create_partitions), "describe-config": with_admin(describe_config),
    "alter-config": with_admin(alter_config), "delete-records": with_admin(delete_records),
    "list-groups": with_admin(list_groups), "describe-group": with_admin(describe_group),
    "delete-group": with_admin(delete_group), "delete-topic": with_admin(delete_topic),
}

if __name__ == "__main__":
    wire.serve(FEATURES, sys.argv[1:])
