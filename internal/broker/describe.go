package broker

import (
	"fmt"
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
	if strings.Contains(guess, "between") || strings.Contains(guess, "custom") {
		// No release offers just this: a look-alike. Its newest Produce and
		// Fetch say more than a guess.
		produce, _ := kversion.FromApiVersionsResponse(offered).LookupMaxKeyVersion(int16(kmsg.Produce))
		fetch, _ := kversion.FromApiVersionsResponse(offered).LookupMaxKeyVersion(int16(kmsg.Fetch))
		return fmt.Sprintf("speaks Kafka's protocol (Produce %d, Fetch %d)", produce, fetch)
	}
	return "speaks Kafka " + strings.TrimPrefix(guess, "v")
}
