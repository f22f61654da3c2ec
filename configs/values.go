package configs

import (
	"fmt"
	"math"
	"net"
	"strconv"
	"strings"
)

// Size is a number of bytes. It is written as an integer, or as an integer
// followed by KiB, MiB or GiB.
type Size int64

// Units of Size.
const (
	KiB Size = 1 << 10
	MiB Size = 1 << 20
	GiB Size = 1 << 30
)

var sizeUnits = []struct {
	name string
	size Size
}{{"GiB", GiB}, {"MiB", MiB}, {"KiB", KiB}}

// String writes the size with the largest unit that divides it.
func (s Size) String() string {
	for _, u := range sizeUnits {
		if s != 0 && s%u.size == 0 {
			return strconv.FormatInt(int64(s/u.size), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// ParseSize reads a Size; it refuses negative numbers, fractions and the
// decimal units that are so often meant as binary ones.
func ParseSize(text string) (Size, error) {
	unit, digits := Size(1), strings.TrimSpace(text)
	for _, u := range sizeUnits {
		if rest, ok := strings.CutSuffix(digits, u.name); ok {
			unit, digits = u.size, strings.TrimSpace(rest)
			break
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/int64(unit) {
		return 0, fmt.Errorf(`%q is not a size: write bytes as an integer, or an integer with KiB, MiB or GiB, such as 256KiB`, text)
	}
	return Size(n) * unit, nil
}

// Listener is one named address for Kafka clients. The name ties an entry of
// advertised_listeners to the entry of listeners that it speaks for.
type Listener struct {
	Name string
	Host string // a name, an IPv4 address or an IPv6 address without brackets; empty means every interface
	Port int
}

// Address returns host:port, ready to listen on or to dial.
func (l Listener) Address() string { return net.JoinHostPort(l.Host, strconv.Itoa(l.Port)) }

// String writes the listener as NAME://host:port.
func (l Listener) String() string { return l.Name + "://" + l.Address() }

// ParseListener reads NAME://host:port. The host may be empty, as in Kafka,
// and then means every interface.
func ParseListener(text string) (Listener, error) {
	name, address, ok := strings.Cut(strings.TrimSpace(text), "://")
	if !ok || name == "" {
		return Listener{}, fmt.Errorf("%q is not a listener: write NAME://host:port, such as PLAINTEXT://127.0.0.1:9092", text)
	}
	host, port, err := splitAddress(address)
	if err != nil {
		return Listener{}, fmt.Errorf("listener %q: %w", text, err)
	}
	return Listener{Name: name, Host: host, Port: port}, nil
}

// Peer is one member of the cluster as configured: its node id and the
// internode address under which the others dial it, resolved at every dial.
type Peer struct {
	ID      int32  `yaml:"id"`
	Address string `yaml:"address"`
}

// String writes the peer as id=host:port.
func (p Peer) String() string { return strconv.Itoa(int(p.ID)) + "=" + p.Address }

// ParsePeer reads id=host:port, the form that --set and the environment use.
func ParsePeer(text string) (Peer, error) {
	id, address, ok := strings.Cut(strings.TrimSpace(text), "=")
	if !ok {
		return Peer{}, fmt.Errorf("%q is not a peer: write id=host:port, such as 1=node-1.example:7400", text)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(id), 10, 32)
	if err != nil {
		return Peer{}, fmt.Errorf("peer %q: %q is not a node id: write a whole number from 1 to 2147483647", text, id)
	}
	return Peer{ID: int32(n), Address: strings.TrimSpace(address)}, nil
}

// splitAddress takes host:port apart. The host may be empty, the port may not;
// port 0 is left to the caller to judge.
func splitAddress(address string) (host string, port int, err error) {
	host, digits, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, fmt.Errorf("%q is not an address: write host:port, and an IPv6 host in brackets", address)
	}
	n, err := strconv.ParseUint(digits, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("address %q: %q is not a port: write a number from 1 to 65535", address, digits)
	}
	if strings.ContainsAny(host, " \t\r\n/=,") {
		return "", 0, fmt.Errorf("address %q: %q is not a host name", address, host)
	}
	return host, int(n), nil
}

// isLoopback reports whether the host is surely this machine only. Any name
// but localhost counts as outside: what it resolves to can change.
func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// isUnspecified reports whether the host stands for every interface, and so
// is no address that another machine can dial.
func isUnspecified(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}
