package report

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// Chart is a picture of horizontal bars: groups of them, one bar a series in each group.
type Chart struct {
	Title, Unit string
	// Log makes the scale logarithmic.
	Log bool
	// Series are the colours' names; one that is empty is not shown.
	Series []string
	Groups []Group
}

// Group is a row of bars.
type Group struct {
	Label string
	Bars  []Bar
}

// Bar is one value.
type Bar struct {
	// Series is an index of Chart.Series.
	Series int
	Value  float64
	// To is the end of a thin line from Value on, a percentile further out; 0: none.
	To float64
	// Bound is what the value is to stay below (or above); 0: none.
	Bound float64
	// Text stands behind the bar.
	Text string
}

const (
	labelWidth = 250
	plotWidth  = 520
	chartWidth = labelWidth + plotWidth + 150
	barHeight  = 13
	gap        = 9
	headHeight = 62
)

var colours = []string{"#8a8f98", "#3d7dca", "#d9822b", "#4a9c5d", "#9b59b6"}

// SVG draws charts below each other.
func SVG(charts ...Chart) string {
	height := 0
	var body strings.Builder
	for _, c := range charts {
		fmt.Fprintf(&body, "<g transform=\"translate(0,%d)\">\n%s</g>\n", height, c.draw())
		height += c.height()
	}
	return fmt.Sprintf("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" "+
		"font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n%s</svg>\n",
		chartWidth, height, chartWidth, height, body.String())
}

func (c Chart) height() int {
	h := headHeight + 20
	for _, g := range c.Groups {
		h += len(g.Bars)*barHeight + gap
	}
	return h
}

func (c Chart) draw() string {
	var b strings.Builder
	text := func(x, y float64, more, s string) {
		fmt.Fprintf(&b, "<text x=\"%.1f\" y=\"%.1f\" %s>%s</text>\n", x, y, more, html.EscapeString(s))
	}
	text(10, 20, `font-size="14" font-weight="bold" fill="#222"`, c.Title)
	x := 10.0
	for i, s := range c.Series {
		if s == "" {
			continue
		}
		fmt.Fprintf(&b, "<rect x=\"%.1f\" y=\"30\" width=\"11\" height=\"11\" fill=\"%s\"/>\n", x, colours[i%len(colours)])
		text(x+16, 40, `fill="#222"`, s)
		x += 130
	}
	at := c.scale()
	bottom := float64(c.height() - 20)
	for _, tick := range c.ticks() {
		x := at(tick)
		fmt.Fprintf(&b, "<line x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"#e3e3e3\"/>\n", x, headHeight-6, x, bottom)
		text(x, headHeight-9, `text-anchor="middle" fill="#777"`, Thousands(tick)+" "+c.Unit)
	}
	y := float64(headHeight)
	for _, g := range c.Groups {
		text(labelWidth-8, y+float64(len(g.Bars)*barHeight)/2+4, `text-anchor="end" fill="#222"`, g.Label)
		for _, bar := range g.Bars {
			b.WriteString(bar.draw(at, y))
			y += barHeight
		}
		y += gap
	}
	return b.String()
}

func (bar Bar) draw(at func(float64) float64, y float64) string {
	var b strings.Builder
	from, to := at(0), at(bar.Value)
	colour := colours[bar.Series%len(colours)]
	fmt.Fprintf(&b, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%d\" fill=\"%s\"/>\n", from, y+1, max(to-from, 1), barHeight-2, colour)
	end := to
	if bar.To > bar.Value {
		end = at(bar.To)
		fmt.Fprintf(&b, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" stroke-width=\"2\"/>\n",
			to, y+barHeight/2.0, end, y+barHeight/2.0, colour)
	}
	if bar.Bound > 0 {
		x := at(bar.Bound)
		end = max(end, x)
		fmt.Fprintf(&b, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"#c0262d\" stroke-width=\"2.5\"/>\n", x, y-1, x, y+barHeight+1)
	}
	fmt.Fprintf(&b, "<text x=\"%.1f\" y=\"%.1f\" fill=\"#555\" font-size=\"10\">%s</text>\n", end+5, y+barHeight-3, html.EscapeString(bar.Text))
	return b.String()
}

// span returns the smallest and the greatest value that are drawn.
func (c Chart) span() (low, high float64) {
	var all []float64
	for _, g := range c.Groups {
		for _, b := range g.Bars {
			for _, v := range []float64{b.Value, b.To, b.Bound} {
				if v > 0 {
					all = append(all, v)
				}
			}
		}
	}
	if len(all) == 0 {
		return 0.1, 1
	}
	return slices.Min(all), slices.Max(all)
}

// scale returns where on the plot a value is.
func (c Chart) scale() func(float64) float64 {
	low, high := c.span()
	if !c.Log {
		return func(v float64) float64 { return labelWidth + plotWidth*v/high }
	}
	from := math.Floor(math.Log10(low))
	to := math.Log10(high)
	return func(v float64) float64 {
		if v <= 0 {
			return labelWidth
		}
		return labelWidth + plotWidth*max(0, math.Log10(v)-from)/max(to-from, 0.1)
	}
}

func (c Chart) ticks() []float64 {
	low, high := c.span()
	var all []float64
	if c.Log {
		for e := math.Ceil(math.Log10(low)); math.Pow(10, e) <= high; e++ {
			all = append(all, math.Pow(10, e))
		}
		return all
	}
	step := math.Pow(10, math.Floor(math.Log10(high)))
	if high/step < 2.5 {
		step /= 2
	}
	for v := step; v <= high; v += step {
		all = append(all, v)
	}
	return all
}
