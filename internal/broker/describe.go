package broker

import (
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
)

// describe guesses from the offered versions which Kafka release a broker
// speaks like. It is for people; nothing may decide by it.
func describe(offered *kmsg.ApiVersionsResponse) string {
	if offered == nil {
		return "unknown"
	}
	guess := kversion.FromApiVersionsResponse(offered).VersionGuess()
	guess = strings.TrimSpace(guess)
	if guess == "" || strings.HasPrefix(guess, "unknown") || strings.HasPrefix(guess, "not even") {
		return "unknown"
	}
	return "speaks Kafka " + strings.TrimPrefix(guess, "v")
}
