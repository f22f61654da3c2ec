package proxy

import (
	"maps"
	"slices"
)

// AdoptableSettings splits what a broker has as a topic's own settings into
// those that clients may have, and the names of those that the cluster could not
// keep and that are dropped, in order. Any goroutine.
func AdoptableSettings(own map[string]string) (kept map[string]string, dropped []string) {
	kept = make(map[string]string)
	for _, name := range slices.Sorted(maps.Keys(own)) {
		if settingProblem(name, own[name]) != "" {
			dropped = append(dropped, name)
			continue
		}
		kept[name] = own[name]
	}
	if settingsConflict(kept) != nil {
		delete(kept, "min.compaction.lag.ms")
		dropped = append(dropped, "min.compaction.lag.ms")
	}
	return kept, dropped
}
