package kafkawire

// maxTopicName is the longest topic name in bytes (org.apache.kafka.common.
// internals.Topic): the broker makes directories of them.
const maxTopicName = 249

// ValidTopicName reports whether a broker would take name for a topic: 1 to
// 249 letters, digits, dots, underscores and hyphens, and neither "." nor "..".
// The answer to others is INVALID_TOPIC_EXCEPTION, 17.
func ValidTopicName(name string) bool {
	if name == "" || name == "." || name == ".." || len(name) > maxTopicName {
		return false
	}
	for i := range len(name) {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}
