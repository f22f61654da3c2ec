package watch

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestIndexWaitReturnsOnceReached(t *testing.T) {
	var x Index
	got := make(chan uint64)
	go func() {
		v, err := x.Wait(context.Background(), 5)
		if err != nil {
			t.Error(err)
		}
		got <- v
	}()
	x.Set(3)
	select {
	case v := <-got:
		t.Fatalf("woke at %d, before 5", v)
	case <-time.After(10 * time.Millisecond):
	}
	x.Set(7)
	if v := <-got; v != 7 {
		t.Fatalf("got %d, want 7", v)
	}
}

func TestIndexNeverGoesBack(t *testing.T) {
	var x Index
	x.Set(9)
	x.Set(4)
	if got := x.Get(); got != 9 {
		t.Fatalf("got %d, want 9", got)
	}
}

func TestIndexWaitEndsWithContext(t *testing.T) {
	var x Index
	cause := errors.New("closing")
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(cause)
	if _, err := x.Wait(ctx, 1); !errors.Is(err, cause) {
		t.Fatalf("got %v, want the cause", err)
	}
}

func TestValueChangedFires(t *testing.T) {
	var x Value[string]
	v, changed := x.Changed()
	if v != "" {
		t.Fatalf("zero value is %q", v)
	}
	x.Set("a")
	<-changed
	if got := x.Get(); got != "a" {
		t.Fatalf("got %q", got)
	}
}
