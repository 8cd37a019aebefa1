package nuisance

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestOneLineAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := slog.New(slog.NewTextHandler(&out, nil))
		var c Counter
		for range 3 {
			c.Warn(log, "again", "who", "somebody")
			c.Warn(log, "again", "who", "somebody")
			time.Sleep(Pause / 2)
		}
		if got := out.String(); c.Total() != 6 || strings.Count(got, "\n") != 2 || !strings.Contains(got, `who=somebody "so far"=5`) {
			t.Errorf("%d in all, log:\n%s", c.Total(), got)
		}
	})
}
