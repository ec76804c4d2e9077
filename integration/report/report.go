// Package report writes what a benchmark measured into a page of the documentation: tables
// in Markdown between two markers, and pictures.
package report

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
	"unicode/utf8"
)

// Table is a table in Markdown.
type Table struct {
	columns []string
	rows    [][]string
}

// NewTable begins a table.
func NewTable(columns ...string) *Table { return &Table{columns: columns} }

// Add adds a row; each cell is printed as fmt.Sprint does.
func (t *Table) Add(cells ...any) {
	row := make([]string, len(t.columns))
	for i := range row {
		if i < len(cells) {
			row[i] = strings.ReplaceAll(fmt.Sprint(cells[i]), "|", `\|`)
		}
	}
	t.rows = append(t.rows, row)
}

// String is the table, its columns aligned, with a newline at its end.
func (t *Table) String() string {
	widths := make([]int, len(t.columns))
	for _, row := range append([][]string{t.columns}, t.rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell), 3)
		}
	}
	var b strings.Builder
	line := func(cells []string) {
		for i, cell := range cells {
			fmt.Fprintf(&b, "| %s%s ", cell, strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)))
		}
		b.WriteString("|\n")
	}
	line(t.columns)
	for _, w := range widths {
		b.WriteString("| " + strings.Repeat("-", w) + " ")
	}
	b.WriteString("|\n")
	for _, row := range t.rows {
		line(row)
	}
	return b.String()
}

// Micros writes a time in µs, with three figures.
func Micros(d time.Duration) string {
	us := float64(d) / float64(time.Microsecond)
	switch {
	case us < 10:
		return fmt.Sprintf("%.2f", us)
	case us < 100:
		return fmt.Sprintf("%.1f", us)
	}
	return Thousands(us)
}

// Thousands writes a number without a fraction, its thousands set apart.
func Thousands(f float64) string {
	digits := fmt.Sprintf("%.0f", f)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

// ErrNoMarkers: the page has no place for what is to be written.
var ErrNoMarkers = errors.New("the page lacks the markers")

// Replace puts text between the two markers that name a part of a page: <!-- part: … --> and <!-- end of part -->.
func Replace(path, part, text string) error {
	page, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	changed, err := replaced(string(page), part, text)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return os.WriteFile(path, []byte(changed), 0o644)
}

func replaced(page, part, text string) (string, error) {
	begin, end := "<!-- "+part+":", "<!-- end of "+part+" -->"
	head, rest, ok := strings.Cut(page, begin)
	comment, rest, ok2 := strings.Cut(rest, "-->\n")
	_, tail, ok3 := strings.Cut(rest, end)
	if !ok || !ok2 || !ok3 {
		return "", fmt.Errorf("%w %q and %q", ErrNoMarkers, begin+" … -->", end)
	}
	return head + begin + comment + "-->\n\n" + strings.TrimSpace(text) + "\n\n" + end + tail, nil
}
