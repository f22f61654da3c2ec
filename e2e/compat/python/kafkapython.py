"""kafka-python as a client of the compatibility suite."""
import sys
import time

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.errors import KafkaError

import wire


def produce(o):
    codec = o.get("codec", "none")
    conf = {"bootstrap_servers": o["bootstrap"].split(","), "acks": "all", "linger_ms": 5,
            "compression_type": None if codec == "none" else codec, "delivery_timeout_ms": 60000,
            "request_timeout_ms": 15000, "enable_idempotence": o.get("idempotent") == "true"}
    if "max" in o:
        conf["max_request_size"] = int(o["max"])
    p, futures = KafkaProducer(**conf), []
    count, size, rate = int(o["count"]), int(o.get("size", 0)), int(o.get("rate", 0))

    def report(i):
        return lambda m: wire.acked(o["prefix"], i, m.partition, m.offset)

    try:
        for i in range(count):
            f = p.send(o["topic"], key=b"k%d" % (i % 10), value=wire.value(o["prefix"], i, size), headers=wire.headers(o))
            f.add_callback(report(i))
            futures.append(f)
            if rate:
                time.sleep(1.0 / rate)
        p.flush()
        for f in futures:
            f.get(60)
    finally:
        p.close(5)


def show(r):
    wire.record(r.partition, r.offset, r.key, r.value, r.headers)


def consume(o):
    c = KafkaConsumer(bootstrap_servers=o["bootstrap"].split(","), group_id=None, auto_offset_reset="earliest",
                      enable_auto_commit=False)
    try:
        tps = [TopicPartition(o["topic"], p) for p in c.partitions_for_topic(o["topic"])]
        c.assign(tps)
        c.seek_to_beginning(*tps)
        left = int(o["count"])
        while left > 0:
            for records in c.poll(500).values():
                for r in records:
                    show(r)
                    left -= 1
    finally:
        c.close()


class Listener(ConsumerRebalanceListener):
    def __init__(self, consumer):
        self.consumer = consumer

    def on_partitions_revoked(self, revoked):
        pass

    def on_partitions_assigned(self, assigned):
        wire.emit(event="assigned", partitions=sorted(tp.partition for tp in self.consumer.assignment()))


def group(o):
    c = KafkaConsumer(bootstrap_servers=o["bootstrap"].split(","), group_id=o["group"], auto_offset_reset="earliest",
                      enable_auto_commit=False, session_timeout_ms=6000, heartbeat_interval_ms=500)
    try:
        c.subscribe([o["topic"]], listener=Listener(c))
        while not wire.stopped.is_set():
            try:
                batches = c.poll(300)
            except KafkaError as e:  # poll tells of a coordinator that is gone
                wire.emit(event="notice", error=repr(e))
                continue
            for records in batches.values():
                for r in records:
                    show(r)
            if not batches:
                continue
            try:
                c.commit()
                wire.emit(event="committed")
            except KafkaError as e:
                wire.emit(event="notice", error=repr(e))
    finally:
        c.close()


def with_admin(call):
    def feature(o):
        a = KafkaAdminClient(bootstrap_servers=o["bootstrap"].split(","), request_timeout_ms=15000)
        try:
            call(a, o)
        finally:
            a.close()
    return feature


def create_topic(a, o):
    spec = {"num_partitions": int(o["partitions"]), "replication_factor": 3}
    if "name" in o:
        spec["configs"] = {o["name"]: o["value"]}
    a.create_topics({o["topic"]: spec})


def describe_topic(a, o):
    (t,) = a.describe_topics([o["topic"]])
    ps = t["partitions"]
    wire.emit(event="result", partitions=len(ps), replicas=len(ps[0].get("replica_nodes") or ps[0].get("replicas")))


def describe_config(a, o):
    found = a.describe_configs([ConfigResource(ConfigResourceType.TOPIC, o["topic"])], config_filter="all")
    (topics,) = found.values()
    wire.emit(event="result", value=topics[o["topic"]][o["name"]]["value"])


def delete_records(a, o):
    a.delete_records({TopicPartition(o["topic"], int(o["partition"])): int(o["offset"])}, timeout_ms=15000)


def list_groups(a, o):
    wire.emit(event="result", groups=[g.get("group_id") or g.get("group") for g in a.list_groups()])


def describe_group(a, o):
    d = a.describe_groups([o["group"]])[o["group"]]
    wire.emit(event="result", members=len(d["members"]))


def delete_group(a, o):
    # Says what became of the group instead of raising; the suite looks itself.
    wire.emit(event="notice", error=repr(a.delete_groups([o["group"]])))


FEATURES = {
    "produce": produce, "consume": consume, "group": group,
    "create-topic": with_admin(create_topic), "describe-topic": with_admin(describe_topic),
    "create-partitions": with_admin(lambda a, o: a.create_partitions({o["topic"]: int(o["partitions"])})),
    "describe-config": with_admin(describe_config),
    "alter-config": with_admin(lambda a, o: a.alter_configs(
        [ConfigResource(ConfigResourceType.TOPIC, o["topic"], configs={o["name"]: o["value"]})])),
    "delete-records": with_admin(delete_records),
    "list-groups": with_admin(list_groups), "describe-group": with_admin(describe_group),
    "delete-group": with_admin(delete_group),
    "delete-topic": with_admin(lambda a, o: a.delete_topics([o["topic"]])),
}

if __name__ == "__main__":
    wire.serve(FEATURES, sys.argv[1:])
