//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// compatTools are Apache Kafka's own tools; each is held to what the brokers
// say afterwards.
var compatTools = []*compatFeature{
	{name: "kafka-topics: create, describe, alter, list, delete", run: topicsTool},
	{name: "kafka-console-producer", run: consoleProducer},
	{name: "kafka-console-consumer", run: consoleConsumer},
	{name: "kafka-configs: describe", run: configsDescribe},
	{name: "kafka-configs: alter", run: configsAlter},
	{name: "kafka-consumer-groups: describe, reset offsets, delete", run: groupsTool},
	{name: "kafka-delete-records", run: deleteRecordsTool},
	{name: "kafka-acls: list", run: aclsTool},
	{name: "kafka-producer-perf-test", run: perfTool},
	{name: "kafka-verifiable-producer", run: verifiableProducerTool},
	{name: "kafka-verifiable-consumer", run: verifiableConsumerTool},
}

// tool runs one of Kafka's classes against the proxies and returns what it
// printed. What it says on standard error becomes part of an error.
func (r *compatRun) tool(ctx context.Context, stdin, class string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, featureTime)
	defer cancel()
	d := r.c.node(1).broker.dist
	short := class[strings.LastIndexByte(class, '.')+1:]
	args = append([]string{class, "--bootstrap-server", strings.Join(r.c.bootstrap(), ",")}, args...)
	cmd := exec.Command(d.java, append(d.jvmFlags(256, filepath.Join(r.c.dir, short+".log")), args...)...)
	var out, said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &said
	p, err := startProcess(short, cmd)
	if err != nil {
		return "", err
	}
	if err := p.wait(ctx); err != nil {
		return out.String(), fmt.Errorf("%w: %s", err, firstProblem(out.String()+said.String()))
	}
	// Some of them end with 0 and have failed.
	if text := out.String() + said.String(); strings.Contains(text, "Exception:") {
		return out.String(), fmt.Errorf("%s", firstProblem(text))
	}
	return out.String(), nil
}

// firstProblem returns the first line that names an exception, or the last one.
func firstProblem(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for _, line := range lines {
		if strings.Contains(line, "Exception") || strings.Contains(line, "Error") {
			return strings.TrimSpace(line)
		}
	}
	return lines[len(lines)-1]
}

func wantText(out string, wants ...string) error {
	for _, want := range wants {
		if !strings.Contains(out, want) {
			return fmt.Errorf("%q is not in its output: %s", want, lastBytes(out, 500))
		}
	}
	return nil
}

func topicsTool(ctx context.Context, r *compatRun) error {
	const class, topic = "org.apache.kafka.tools.TopicCommand", "tools.topics"
	if _, err := r.tool(ctx, "", class, "--create", "--topic", topic, "--partitions", "3", "--replication-factor", "3", "--config", "retention.ms=3600000"); err != nil {
		return fmt.Errorf("create: %w", err)
	}
	if err := r.onBrokers(ctx, topic, 3, "3600000"); err != nil {
		return fmt.Errorf("create: %w", err)
	}
	out, err := r.tool(ctx, "", class, "--describe", "--topic", topic)
	if err == nil {
		err = wantText(out, "PartitionCount: 3", "ReplicationFactor: 3", "retention.ms=3600000")
	}
	if err != nil {
		return fmt.Errorf("describe: %w", err)
	}
	if _, err := r.tool(ctx, "", class, "--alter", "--topic", topic, "--partitions", "5"); err != nil {
		return fmt.Errorf("alter: %w", err)
	}
	if err := r.onBrokers(ctx, topic, 5, ""); err != nil {
		return fmt.Errorf("alter: %w", err)
	}
	if out, err = r.tool(ctx, "", class, "--list"); err == nil {
		err = wantText(out, topic, sharedTopic)
	}
	if err != nil {
		return fmt.Errorf("list: %w", err)
	}
	if _, err := r.tool(ctx, "", class, "--delete", "--topic", topic); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	return r.gone(ctx, topic)
}

func consoleProducer(ctx context.Context, r *compatRun) error {
	topic, err := r.withTopic(ctx, "console", 2)
	if err != nil {
		return err
	}
	var in strings.Builder
	for i := range 50 {
		fmt.Fprintf(&in, "line-%d\n", i)
	}
	if _, err := r.tool(ctx, in.String(), "org.apache.kafka.tools.ConsoleProducer", "--topic", topic); err != nil {
		return err
	}
	records, err := onEveryBroker(ctx, r.c.nodes, topic, 2, 50)
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, rec := range records {
		seen[rec.id] = true
	}
	for i := range 50 {
		if len(records) != 50 || !seen[fmt.Sprintf("line-%d", i)] {
			return fmt.Errorf("line %d of 50 is not among the %d records", i, len(records))
		}
	}
	return nil
}

func consoleConsumer(ctx context.Context, r *compatRun) error {
	out, err := r.tool(ctx, "", "org.apache.kafka.tools.consumer.ConsoleConsumer", "--topic", sharedTopic, "--from-beginning",
		"--max-messages", fmt.Sprint(len(r.shared)), "--timeout-ms", "60000")
	if err != nil {
		return err
	}
	left := map[string]bool{}
	for _, rec := range r.shared {
		left[rec.id+"."] = true
	}
	for line := range strings.Lines(out) {
		value := strings.TrimSpace(line)
		if !left[value] {
			return fmt.Errorf("it printed %q, which nobody sent or which it printed before", value)
		}
		delete(left, value)
	}
	if len(left) > 0 {
		return fmt.Errorf("it did not print %d of %d records", len(left), len(r.shared))
	}
	return nil
}

func configsDescribe(ctx context.Context, r *compatRun) error {
	topic, err := r.withTopic(ctx, "configs", 1, "retention.ms", "7200000")
	if err != nil {
		return err
	}
	if err := r.onBrokers(ctx, topic, 1, "7200000"); err != nil {
		return err
	}
	out, err := r.tool(ctx, "", "kafka.admin.ConfigCommand", "--describe", "--entity-type", "topics", "--entity-name", topic)
	if err != nil {
		return err
	}
	return wantText(out, "retention.ms=7200000")
}

func configsAlter(ctx context.Context, r *compatRun) error {
	topic, err := r.withTopic(ctx, "configsalter", 1, "retention.ms", "7200000")
	if err != nil {
		return err
	}
	if _, err := r.tool(ctx, "", "kafka.admin.ConfigCommand", "--alter", "--entity-type", "topics", "--entity-name", topic,
		"--add-config", "retention.ms=1800000"); err != nil {
		return err
	}
	return r.onBrokers(ctx, topic, 1, "1800000")
}

func groupsTool(ctx context.Context, r *compatRun) error {
	const class, group = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand", "tools.group"
	ends, err := r.readInGroup(ctx, group)
	if err != nil {
		return err
	}
	out, err := r.tool(ctx, "", class, "--describe", "--group", group)
	if err != nil {
		return fmt.Errorf("describe: %w", err)
	}
	for line := range strings.Lines(out) {
		// GROUP TOPIC PARTITION CURRENT-OFFSET LOG-END-OFFSET LAG ...
		if f := strings.Fields(line); len(f) > 5 && f[0] == group && (f[3] != f[4] || f[5] != "0") {
			return fmt.Errorf("describe: the group has read everything, and it says %s", line)
		}
	}
	if n := strings.Count(out, sharedTopic); n != len(ends) {
		return fmt.Errorf("describe: %d partitions are named, want %d: %s", n, len(ends), lastBytes(out, 500))
	}
	if _, err := r.tool(ctx, "", class, "--reset-offsets", "--to-earliest", "--execute", "--group", group, "--topic", sharedTopic); err != nil {
		return fmt.Errorf("reset offsets: %w", err)
	}
	got, err := compatCommittedOffsets(ctx, r.c, group, sharedTopic, 3)
	if err == nil && !maps.Equal(got, map[int32]int64{0: 0, 1: 0, 2: 0}) {
		err = fmt.Errorf("reset offsets: the group's offsets are %v, want 0", got)
	}
	if err != nil {
		return err
	}
	if _, err := r.tool(ctx, "", class, "--delete", "--group", group); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	got, err = compatCommittedOffsets(ctx, r.c, group, sharedTopic, 3)
	if err == nil && !maps.Equal(got, map[int32]int64{0: -1, 1: -1, 2: -1}) {
		err = fmt.Errorf("delete: the group's offsets are %v, want none", got)
	}
	return err
}

// readInGroup has the verifiable consumer read the shared topic and returns the
// offsets that the group committed, which must be the ends of the log.
func (r *compatRun) readInGroup(ctx context.Context, group string) (map[int32]int64, error) {
	out, err := r.tool(ctx, "", "org.apache.kafka.tools.VerifiableConsumer", "--topic", sharedTopic, "--group-id", group,
		"--max-messages", fmt.Sprint(len(r.shared)), "--reset-policy", "earliest")
	if err != nil {
		return nil, err
	}
	read := 0
	for line := range strings.Lines(out) {
		var e struct {
			Name  string `json:"name"`
			Count int    `json:"count"`
		}
		if json.Unmarshal([]byte(line), &e) == nil && e.Name == "records_consumed" {
			read += e.Count
		}
	}
	if read != len(r.shared) {
		return nil, fmt.Errorf("it read %d records, want %d", read, len(r.shared))
	}
	ends, _, err := endOffsets(ctx, r.c.node(1).broker.addr(), sharedTopic, 3)
	if err != nil {
		return nil, err
	}
	got, err := compatCommittedOffsets(ctx, r.c, group, sharedTopic, 3)
	if err == nil && !maps.Equal(got, ends) {
		err = fmt.Errorf("the group committed %v, the log ends at %v", got, ends)
	}
	return ends, err
}

func deleteRecordsTool(ctx context.Context, r *compatRun) error {
	topic, err := r.withTopic(ctx, "deleterecords", 1)
	if err != nil {
		return err
	}
	if err := produceTo(ctx, r.c, topic, 1, "t", 40); err != nil {
		return err
	}
	file := filepath.Join(r.c.dir, "delete-records.json")
	text := fmt.Sprintf(`{"version":1,"partitions":[{"topic":%q,"partition":0,"offset":30}]}`, topic)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return err
	}
	if _, err := r.tool(ctx, "", "org.apache.kafka.tools.DeleteRecordsCommand", "--offset-json-file", file); err != nil {
		return err
	}
	return r.startsAt(ctx, topic, 30)
}

func aclsTool(ctx context.Context, r *compatRun) error {
	_, err := r.tool(ctx, "", "org.apache.kafka.tools.AclCommand", "--list")
	return err
}

func perfTool(ctx context.Context, r *compatRun) error {
	topic, err := r.withTopic(ctx, "perf", 3)
	if err != nil {
		return err
	}
	out, err := r.tool(ctx, "", "org.apache.kafka.tools.ProducerPerformance", "--topic", topic, "--num-records", "5000",
		"--record-size", "200", "--throughput", "-1")
	if err != nil {
		return err
	}
	if err := wantText(out, "5000 records sent"); err != nil {
		return err
	}
	records, err := onEveryBroker(ctx, r.c.nodes, topic, 3, 5000)
	if err == nil && len(records) != 5000 {
		err = fmt.Errorf("%d records stand on the brokers, want 5000", len(records))
	}
	return err
}

func verifiableProducerTool(ctx context.Context, r *compatRun) error {
	topic, err := r.withTopic(ctx, "verifiable", 3)
	if err != nil {
		return err
	}
	out, err := r.tool(ctx, "", "org.apache.kafka.tools.VerifiableProducer", "--topic", topic, "--max-messages", "2000", "--acks", "-1")
	if err != nil {
		return err
	}
	acks, failed, err := parseAcks(out)
	if err != nil {
		return err
	}
	if len(acks) != 2000 || failed > 0 {
		return fmt.Errorf("%d acknowledged and %d failed, want 2000 acknowledged", len(acks), failed)
	}
	if _, err := onEveryBroker(ctx, r.c.nodes, topic, 3, 2000); err != nil {
		return err
	}
	d, err := readBroker(ctx, r.c.node(2).broker.addr(), topic, 3)
	if err != nil {
		return err
	}
	return acksAt(acks, d)
}

func verifiableConsumerTool(ctx context.Context, r *compatRun) error {
	_, err := r.readInGroup(ctx, "tools.verifiable")
	return err
}
