package configs

// RaftRPCsInFlight is how many AppendEntries a leader may have under way to
// one follower (transport, raftPipeline). It belongs to the memory formula.
const RaftRPCsInFlight = 2

// raftMaxAppendEntries is as far as fittingAppendEntries goes: beyond 64 the
// measurements showed no gain for proposals that are already batched.
const raftMaxAppendEntries = 64

// ReplicationBytes is the most that Raft can hold for replication at once, in
// bytes: hashicorp/raft bounds an AppendEntries by entries only, so a node
// that leads every group while all followers catch up on entries of the
// largest size holds
//
//	groups × followers × RPCs in flight × max_append_entries × max_entry_bytes
//
// A follower decodes one AppendEntries per group and stays below that.
func (c Config) ReplicationBytes() int64 {
	return c.bytesPerAppendEntry() * int64(c.Raft.MaxAppendEntries)
}

// bytesPerAppendEntry is what each unit of raft.max_append_entries costs. The
// factors are clamped to their documented ranges, so it cannot overflow even
// for a configuration that has not been validated.
func (c Config) bytesPerAppendEntry() int64 {
	followers := int64(clamp(len(c.Raft.Peers)-1, 1, maxPeers))
	groups := int64(clamp(c.Raft.Groups, 1, maxGroups))
	entry := max(1, min(c.Raft.MaxEntryBytes, MaxEntryBytesCeiling))
	return groups * followers * RaftRPCsInFlight * int64(entry)
}

// fittingAppendEntries is the largest raft.max_append_entries that leaves room
// for the clients' bytes in limits.memory_budget; 0 when not even one fits.
func (c Config) fittingAppendEntries() int {
	room := int64(c.Limits.MemoryBudget) - int64(c.Limits.MaxInflightBytes)
	if room <= 0 || c.Limits.MaxInflightBytes < 0 {
		return 0
	}
	return int(min(room/c.bytesPerAppendEntry(), raftMaxAppendEntries))
}

func clamp(v, low, high int) int { return max(low, min(v, high)) }
