package configs

import "testing"

func TestParseSize(t *testing.T) {
	for text, want := range map[string]Size{
		"0": 0, "1048588": 1048588, "256KiB": 256 << 10, "8 MiB": 8 << 20, "1GiB": 1 << 30, "1025KiB": 1025 << 10,
	} {
		got, err := ParseSize(text)
		if err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", text, got, err, want)
		}
		if again, err := ParseSize(got.String()); err != nil || again != got {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", got.String(), again, err, got)
		}
	}
	for _, text := range []string{"", "KiB", "1.5MiB", "8MB", "8mib", "-1KiB", "1e6", "9007199254740992KiB"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("ParseSize(%q) = %d, want an error", text, got)
		}
	}
}

func TestParseListener(t *testing.T) {
	for text, want := range map[string]Listener{
		"PLAINTEXT://127.0.0.1:9092":   {"PLAINTEXT", "127.0.0.1", 9092},
		"INTERNAL://:9092":             {"INTERNAL", "", 9092},
		"EXTERNAL://[fe80::1]:9094":    {"EXTERNAL", "fe80::1", 9094},
		"  CLIENTS://kafka.example:1 ": {"CLIENTS", "kafka.example", 1},
	} {
		got, err := ParseListener(text)
		if err != nil || got != want {
			t.Errorf("ParseListener(%q) = %+v, %v; want %+v", text, got, err, want)
		}
		if again, err := ParseListener(got.String()); err != nil || again != got {
			t.Errorf("ParseListener(%q) = %+v, %v; want %+v", got.String(), again, err, got)
		}
	}
	for _, text := range []string{"", "://h:1", "A:h:1", "A://h", "A://h:", "A://h:-1", "A://h:65536", "A://fe80::1:1", "A://h/x:1", "A://h:kafka"} {
		if got, err := ParseListener(text); err == nil {
			t.Errorf("ParseListener(%q) = %+v, want an error", text, got)
		}
	}
}
