package apply

import (
	"testing"

	"lockstep/fsm"
)

var (
	tpA = fsm.TP{Topic: 1, Partition: 0}
	tpB = fsm.TP{Topic: 1, Partition: 1}
	tpC = fsm.TP{Topic: 1, Partition: 2}
)

func TestCommittedBatchesReachTheBroker(t *testing.T) {
	w := newWorld(t, 2, nil)
	w.open(1, 1, "a", 0, 1)
	w.open(2, 1, "a", 2)
	for range 20 {
		w.send(tpA, 3)
		w.send(tpB, 1)
		w.send(tpC, 2)
	}
	w.commit(1, w.appendCmd(tpA, 2, 10), w.appendCmd(tpB, 3, 10), w.appendCmd(tpA, 1, 10))
	w.settled()
	w.restart()
	w.send(tpA, 3)
	w.settled()
}

func TestCloseWithWorkLeft(t *testing.T) {
	w := newWorld(t, 1, nil)
	w.broker.stop()
	w.open(1, 1, "a", 0)
	for range 200 {
		w.send(tpA, 50)
		w.restart()
		if len(w.want[tpA]) > 2000 {
			break
		}
	}
	w.broker.start()
	w.settled()
}
