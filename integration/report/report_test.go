package report

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestTable(t *testing.T) {
	table := NewTable("what", "p50")
	table.Add("first|last", 12)
	table.Add("µs")
	const want = "| what        | p50 |\n| ----------- | --- |\n| first\\|last | 12  |\n| µs          |     |\n"
	if got := table.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestNumbers(t *testing.T) {
	for d, want := range map[time.Duration]string{612: "0.61", 9990: "9.99", 12345: "12.3", 1234567: "1,235", 14200 * time.Millisecond: "14,200,000"} {
		if got := Micros(d); got != want {
			t.Errorf("Micros(%v) = %s, want %s", d, got, want)
		}
	}
}

// What stands between the markers goes, all else stays, however often it is done.
func TestReplace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "page.md")
	const page = "before\n<!-- figures: made by make bench -->\nold\n<!-- end of figures -->\nafter\n"
	if err := os.WriteFile(path, []byte(page), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"one", "two\n"} {
		if err := Replace(path, "figures", text); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		want := "before\n<!-- figures: made by make bench -->\n\n" + strings.TrimSpace(text) + "\n\n<!-- end of figures -->\nafter\n"
		if string(got) != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if err := Replace(path, "other", ""); !errors.Is(err, ErrNoMarkers) {
		t.Errorf("a page without the markers: %v", err)
	}
}

// A picture is well-formed whatever the labels, and nothing of it lies outside.
func TestSVG(t *testing.T) {
	c := Chart{Title: "<latency> & more", Unit: "µs", Log: true, Series: []string{"file", "Redis"}, Groups: []Group{
		{Label: "cycle", Bars: []Bar{{Series: 0, Value: 0.6}, {Series: 1, Value: 5000, To: 90000, Bound: 100, Text: "5 ms"}}},
		{Label: "none", Bars: []Bar{{Series: 1}}},
	}}
	linear := c
	linear.Log = false
	picture := SVG(c, linear, Chart{})
	d := xml.NewDecoder(strings.NewReader(picture))
	bars := 0
	for {
		token, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, picture)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "rect" {
			bars++
		}
	}
	if bars < 6 {
		t.Errorf("%d rectangles for six bars", bars)
	}
	at := c.scale()
	if x := at(90000); x > labelWidth+plotWidth+1 {
		t.Errorf("the greatest value is at %v, outside of the plot", x)
	}
	if a, b := at(10), at(100); a >= b {
		t.Errorf("10 is at %v, 100 at %v", a, b)
	}
}
