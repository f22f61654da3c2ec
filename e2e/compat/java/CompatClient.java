import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.TreeSet;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.atomic.AtomicReference;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.NewPartitions;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.RecordsToDelete;
import org.apache.kafka.clients.admin.TopicDescription;
import org.apache.kafka.clients.consumer.CommitFailedException;
import org.apache.kafka.clients.consumer.ConsumerRebalanceListener;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.ConsumerRecords;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.PartitionInfo;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.errors.RetriableException;
import org.apache.kafka.common.errors.WakeupException;
import org.apache.kafka.common.header.Header;

/** One of the compatibility suite's clients; ../README.md says what it is asked and what it prints. */
public class CompatClient {
    static final String BYTES = "org.apache.kafka.common.serialization.ByteArray";

    public static void main(String[] args) throws Exception {
        if (!args[0].equals("-")) {
            run(args);
            return;
        }
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            run(line.trim().split(" "));
        }
    }

    static void run(String[] args) {
        Map<String, String> o = new HashMap<>();
        for (String a : args) {
            int eq = a.indexOf('=');
            if (eq > 0) {
                o.put(a.substring(0, eq), a.substring(eq + 1));
            }
        }
        try {
            switch (args[0]) {
                case "produce": produce(o); break;
                case "consume": consume(o); break;
                case "group": group(o); break;
                default: admin(args[0], o);
            }
            print("{\"event\":\"done\"}");
        } catch (Throwable e) {
            Throwable cause = e instanceof ExecutionException ? e.getCause() : e;
            print("{\"event\":\"error\",\"error\":" + quote(cause.toString()) + "}");
        }
    }

    static Properties common(Map<String, String> o) {
        Properties p = new Properties();
        p.put("bootstrap.servers", o.get("bootstrap"));
        p.put("key.serializer", BYTES + "Serializer");
        p.put("value.serializer", BYTES + "Serializer");
        p.put("key.deserializer", BYTES + "Deserializer");
        p.put("value.deserializer", BYTES + "Deserializer");
        return p;
    }

    static void produce(Map<String, String> o) throws Exception {
        Properties p = common(o);
        p.put("acks", "all");
        p.put("enable.idempotence", o.getOrDefault("idempotent", "false"));
        p.put("compression.type", o.getOrDefault("codec", "none"));
        p.put("linger.ms", "5");
        p.put("delivery.timeout.ms", "60000");
        p.put("request.timeout.ms", "15000");
        if (o.containsKey("max")) {
            p.put("max.request.size", o.get("max"));
        }
        int count = number(o, "count"), size = number(o, "size"), rate = number(o, "rate");
        boolean headers = o.containsKey("headers");
        AtomicReference<Exception> failed = new AtomicReference<>();
        try (KafkaProducer<byte[], byte[]> producer = new KafkaProducer<>(p)) {
            for (int i = 0; i < count && failed.get() == null; i++) {
                String id = o.get("prefix") + "-" + i;
                ProducerRecord<byte[], byte[]> r = new ProducerRecord<>(o.get("topic"), ("k" + i % 10).getBytes(), pad(id, size));
                if (headers) {
                    r.headers().add("name", "k\u00e4se".getBytes(StandardCharsets.UTF_8));
                    r.headers().add("twice", "1".getBytes());
                    r.headers().add("twice", "2".getBytes());
                    r.headers().add("bin", new byte[] {(byte) 0x80, (byte) 0xff});
                }
                producer.send(r, (m, e) -> {
                    if (e != null) {
                        failed.compareAndSet(null, e);
                        return;
                    }
                    print("{\"event\":\"acked\",\"value\":" + quote(id) + ",\"partition\":" + m.partition() + ",\"offset\":" + m.offset() + "}");
                });
                if (rate > 0) {
                    Thread.sleep(1000 / rate);
                }
            }
            producer.flush();
        }
        if (failed.get() != null) {
            throw failed.get();
        }
    }

    static byte[] pad(String id, int size) {
        byte[] b = Arrays.copyOf((id + ".").getBytes(), Math.max(size, id.length() + 1));
        for (int i = id.length() + 1; i < b.length; i++) {
            b[i] = (byte) ('a' + i % 26);
        }
        return b;
    }

    static void consume(Map<String, String> o) throws Exception {
        Properties p = common(o);
        p.put("auto.offset.reset", "earliest");
        p.put("enable.auto.commit", "false");
        try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(p)) {
            List<TopicPartition> all = new ArrayList<>();
            for (PartitionInfo i : consumer.partitionsFor(o.get("topic"))) {
                all.add(new TopicPartition(i.topic(), i.partition()));
            }
            consumer.assign(all);
            consumer.seekToBeginning(all);
            for (int left = number(o, "count"); left > 0; ) {
                for (ConsumerRecord<byte[], byte[]> r : consumer.poll(Duration.ofMillis(500))) {
                    print(r);
                    left--;
                }
            }
        }
    }

    static void group(Map<String, String> o) throws Exception {
        Properties p = common(o);
        p.put("group.id", o.get("group"));
        p.put("auto.offset.reset", "earliest");
        p.put("enable.auto.commit", "false");
        p.put("session.timeout.ms", "6000");
        p.put("heartbeat.interval.ms", "500");
        KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(p);
        Thread main = Thread.currentThread();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            consumer.wakeup();
            try {
                main.join(10_000);
            } catch (InterruptedException e) {
                Thread.currentThread().interrupt();
            }
        }));
        try {
            consumer.subscribe(List.of(o.get("topic")), new ConsumerRebalanceListener() {
                public void onPartitionsRevoked(Collection<TopicPartition> gone) { }

                public void onPartitionsAssigned(Collection<TopicPartition> added) {
                    TreeSet<Integer> mine = new TreeSet<>();
                    consumer.assignment().forEach(tp -> mine.add(tp.partition()));
                    print("{\"event\":\"assigned\",\"partitions\":" + mine + "}");
                }
            });
            while (true) {
                ConsumerRecords<byte[], byte[]> records = consumer.poll(Duration.ofMillis(300));
                records.forEach(CompatClient::print);
                if (records.isEmpty()) {
                    continue;
                }
                try {
                    consumer.commitSync(Duration.ofSeconds(10));
                    print("{\"event\":\"committed\"}");
                } catch (CommitFailedException | RetriableException e) {
                    print("{\"event\":\"notice\",\"error\":" + quote(e.toString()) + "}");
                }
            }
        } catch (WakeupException e) {
            // asked to stop
        } finally {
            consumer.close();
        }
    }

    static void admin(String feature, Map<String, String> o) throws Exception {
        Properties p = new Properties();
        p.put("bootstrap.servers", o.get("bootstrap"));
        p.put("default.api.timeout.ms", "20000");
        p.put("request.timeout.ms", "10000");
        String topic = o.get("topic");
        ConfigResource resource = new ConfigResource(ConfigResource.Type.TOPIC, String.valueOf(topic));
        try (Admin a = Admin.create(p)) {
            switch (feature) {
                case "create-topic":
                    NewTopic t = new NewTopic(topic, number(o, "partitions"), (short) 3);
                    if (o.containsKey("name")) {
                        t.configs(Map.of(o.get("name"), o.get("value")));
                    }
                    a.createTopics(List.of(t)).all().get();
                    break;
                case "describe-topic":
                    TopicDescription d = a.describeTopics(List.of(topic)).allTopicNames().get().get(topic);
                    print("{\"event\":\"result\",\"partitions\":" + d.partitions().size() + ",\"replicas\":" + d.partitions().get(0).replicas().size() + "}");
                    break;
                case "create-partitions":
                    a.createPartitions(Map.of(topic, NewPartitions.increaseTo(number(o, "partitions")))).all().get();
                    break;
                case "describe-config":
                    print("{\"event\":\"result\",\"value\":" + quote(a.describeConfigs(List.of(resource)).all().get().get(resource).get(o.get("name")).value()) + "}");
                    break;
                case "alter-config":
                    a.incrementalAlterConfigs(Map.of(resource, List.of(new AlterConfigOp(new ConfigEntry(o.get("name"), o.get("value")), AlterConfigOp.OpType.SET)))).all().get();
                    break;
                case "delete-records":
                    a.deleteRecords(Map.of(new TopicPartition(topic, number(o, "partition")), RecordsToDelete.beforeOffset(number(o, "offset")))).all().get();
                    break;
                case "list-groups":
                    List<String> names = new ArrayList<>();
                    a.listConsumerGroups().all().get().forEach(g -> names.add(quote(g.groupId())));
                    print("{\"event\":\"result\",\"groups\":" + names + "}");
                    break;
                case "describe-group":
                    print("{\"event\":\"result\",\"members\":" + a.describeConsumerGroups(List.of(o.get("group"))).all().get().get(o.get("group")).members().size() + "}");
                    break;
                case "delete-group":
                    a.deleteConsumerGroups(List.of(o.get("group"))).all().get();
                    break;
                case "delete-topic":
                    a.deleteTopics(List.of(topic)).all().get();
                    break;
                default:
                    throw new IllegalArgumentException("no feature " + feature);
            }
        }
    }

    static int number(Map<String, String> o, String name) {
        return Integer.parseInt(o.getOrDefault(name, "0"));
    }

    static void print(ConsumerRecord<byte[], byte[]> r) {
        String value = new String(r.value(), StandardCharsets.UTF_8);
        List<String> headers = new ArrayList<>();
        for (Header h : r.headers()) {
            headers.add("[" + quote(h.key()) + ",\"" + hex(h.value()) + "\"]");
        }
        print("{\"event\":\"record\",\"partition\":" + r.partition() + ",\"offset\":" + r.offset()
            + ",\"key\":" + (r.key() == null ? "\"\"" : quote(new String(r.key(), StandardCharsets.UTF_8)))
            + ",\"value\":" + quote(value.split("\\.")[0]) + ",\"sum\":\"" + sum(r.value()) + "\",\"headers\":" + headers + "}");
    }

    static String sum(byte[] b) {
        try {
            return hex(MessageDigest.getInstance("SHA-256").digest(b));
        } catch (java.security.NoSuchAlgorithmException e) {
            throw new IllegalStateException(e);
        }
    }

    static String hex(byte[] b) {
        StringBuilder s = new StringBuilder();
        for (byte x : b) {
            s.append(String.format("%02x", x));
        }
        return s.toString();
    }

    static String quote(String s) {
        StringBuilder b = new StringBuilder("\"");
        for (char c : s.toCharArray()) {
            if (c == '"' || c == '\\') {
                b.append('\\').append(c);
            } else if (c < ' ') {
                b.append(' ');
            } else {
                b.append(c);
            }
        }
        return b.append('"').toString();
    }

    static synchronized void print(String line) {
        System.out.println(line);
        System.out.flush();
    }
}
