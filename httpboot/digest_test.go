package httpboot

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"
)

// digestAll works off what is in the queue.
func (d *digests) digestAll() {
	for {
		select {
		case u := <-d.queue:
			d.digest(context.Background(), u)
		default:
			return
		}
	}
}

func TestETags(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	write := func(data string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	d := newDigests()
	tag := func() string {
		t.Helper()
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		return d.etag(info, f)
	}
	want := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: got %s, want %s", what, got, want)
		}
	}
	of := func(data string) string { return `"` + sum([]byte(data)) + `"` }

	write("one")
	want("before it is known", tag(), "")
	want("while it is made", tag(), "")
	if len(d.queue) != 1 {
		t.Errorf("%d files in the queue", len(d.queue))
	}
	d.digestAll()
	want("known", tag(), of("one"))

	// The same size and time, as cp -p leaves them.
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	write("two")
	if err := os.Chtimes(path, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	want("changed", tag(), "")
	d.digestAll()
	want("changed and known", tag(), of("two"))

	// Changed while it waits.
	write("three")
	want("changed again", tag(), "")
	write("four!")
	d.digestAll()
	want("changed while it was made", tag(), "")
	d.digestAll()
	want("at rest", tag(), of("four!"))

	// The queue does not grow without end.
	for range 2 * maxToDigest {
		path = filepath.Join(t.TempDir(), "f")
		write("x")
		tag()
	}
	d.digestAll()
	want("when the queue was full", tag(), "")
	d.digestAll()
	want("asked for again", tag(), of("x"))
}

func TestETagsOfWhatIsInMemory(t *testing.T) {
	d := newDigests()
	for _, size := range []int{0, 1000, maxAtOnce + 1} {
		data := pattern(size)
		f, err := fstest.MapFS{"f": {Data: data}}.Open("f")
		if err != nil {
			t.Fatal(err)
		}
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		content := bytes.NewReader(data)
		want := `"` + sum(data) + `"`
		if size > maxAtOnce {
			want = ""
		}
		if got := d.etag(info, content); got != want || content.Len() != size {
			t.Errorf("%d bytes: got %s with %d bytes left", size, got, content.Len())
		}
	}
}
