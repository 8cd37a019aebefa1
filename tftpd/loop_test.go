package tftpd

import "testing"

func TestWakefulnessRestsLongerEachTime(t *testing.T) {
	var w wakefulness
	for want := minRest; want <= maxRest; want *= 2 {
		for w.resting = 0; w.resting == 0; {
			w.miss()
		}
		if w.resting != want {
			t.Errorf("rests for %d waits, want %d", w.resting, want)
		}
	}
	w.sleep()
	if w.resting != maxRest {
		t.Errorf("rests for %d waits", w.resting)
	}
}
