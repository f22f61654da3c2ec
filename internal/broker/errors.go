package broker

import (
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
)

var (
	// ErrConnLost is returned when the connection was lost after a request was
	// handed to it. Whether the broker executed the request is unknown: a
	// Produce already read from a dead socket still executes.
	ErrConnLost = errors.New("broker connection lost, outcome unknown")
	// ErrNotSent is returned when no byte of the request was handed to the
	// connection, so the broker cannot have executed it.
	ErrNotSent = errors.New("not sent to the broker")
	// ErrClosed is returned when the object was closed by its owner.
	ErrClosed = errors.New("broker client closed")
	// ErrUnreachable is returned when no connection could be made.
	ErrUnreachable = errors.New("broker unreachable")
	// ErrUnsupported is returned when the broker lacks the API or every
	// version of it that we speak.
	ErrUnsupported = errors.New("broker does not support a needed API")
	// ErrMalformed is returned when the broker's answer cannot be understood.
	ErrMalformed = errors.New("malformed answer from the broker")
	// ErrNoBatch is returned when the log holds no batch at the asked offset.
	ErrNoBatch = errors.New("no batch at that offset")
	// ErrNoTopic is returned when the broker has no such topic or partition.
	ErrNoTopic = errors.New("no such topic or partition on the broker")
	// ErrTopicExists is returned when a topic to be created exists already.
	ErrTopicExists = errors.New("topic exists on the broker")
	// ErrPolicy is returned when the topic's cleanup.policy does not allow it.
	ErrPolicy = errors.New("the topic's cleanup.policy does not allow it")
)

// CodeError is an error code of the Kafka protocol answered by the broker. It
// matches ErrNoTopic and ErrTopicExists under errors.Is where the code says so.
type CodeError struct {
	Code    int16
	Message string // the broker's own words, may be empty
}

// Error names the code as Kafka does.
func (e *CodeError) Error() string {
	name := fmt.Sprintf("error code %d", e.Code)
	if ke := kerr.TypedErrorForCode(e.Code); ke != nil && ke.Code == e.Code {
		name = ke.Message
	}
	if e.Message == "" {
		return "broker answered " + name
	}
	return "broker answered " + name + ": " + e.Message
}

// Is makes the codes that have a sentinel match it.
func (e *CodeError) Is(target error) bool {
	switch target {
	case ErrNoTopic:
		return e.Code == kerr.UnknownTopicOrPartition.Code
	case ErrTopicExists:
		return e.Code == kerr.TopicAlreadyExists.Code
	}
	return false
}

// Retriable says whether Kafka calls the code transient, as a broker answers
// while it starts (LEADER_NOT_AVAILABLE, NOT_LEADER_OR_FOLLOWER and so on).
func (e *CodeError) Retriable() bool {
	ke := kerr.TypedErrorForCode(e.Code)
	return ke != nil && ke.Retriable
}

// codeError returns nil for code 0.
func codeError(code int16, message *string) error {
	if code == 0 {
		return nil
	}
	e := &CodeError{Code: code}
	if message != nil {
		e.Message = *message
	}
	return e
}
