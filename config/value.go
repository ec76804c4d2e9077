package config

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// decoder collects what is wrong with a file. It never stops at the first
// fault; whoever asks for a value that is wrong gets ok == false and goes on.
type decoder struct {
	file    string
	errs    []error
	ignored []string
}

// value is a node of the file under a key, for example "backends[0].config.port".
type value struct {
	d    *decoder
	key  string
	node *yaml.Node
}

// fields are the keys of a mapping and what to do with the value of each.
type fields map[string]func(value)

// fail notes a fault of the value. wrong says what is wrong, right the right form.
func (v value) fail(wrong, right string) {
	message := wrong
	if right != "" {
		message += "; " + right
	}
	if v.key != "" {
		message = v.key + ": " + message
	}
	if v.node.Line > 0 {
		message = strconv.Itoa(v.node.Line) + ": " + message
	} else {
		message = " " + message
	}
	v.d.errs = append(v.d.errs, fmt.Errorf("%s:%s", v.d.file, message))
}

// sub is a value within this one.
func (v value) sub(key string, node *yaml.Node) value {
	if v.key != "" && !strings.HasPrefix(key, "[") {
		key = "." + key
	}
	if node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	return value{v.d, v.key + key, node}
}

// isNull reports whether the value is empty, or null, which is None in Python.
func (v value) isNull() bool { return v.node.Kind == yaml.ScalarNode && v.node.Tag == "!!null" }

// kind names the type of the value for messages.
func (v value) kind() string {
	switch v.node.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch v.node.Tag {
	case "!!null":
		return "empty"
	case "!!bool":
		return "a truth value"
	case "!!int", "!!float":
		return "a number"
	case "!!str":
		return "text"
	}
	return "of type " + strings.TrimPrefix(v.node.Tag, "!!")
}

// shown is the value as it stands in the file, for messages. What an
// environment variable held is not shown, nor anything that may carry a
// password.
func (v value) shown() string { return shown(v.node.Value) }

func shown(text string) string {
	const long = 60
	switch {
	case strings.ContainsAny(text, "@") || strings.Contains(text, "://"):
		return "the value (not shown: it may hold a password)"
	case len(text) > long:
		return strconv.Quote(strings.ToValidUTF8(text[:long], "")) + "…"
	}
	return strconv.Quote(text)
}

// each walks a mapping: each known key once, unknown keys refused.
func (v value) each(known fields, form string) {
	if v.node.Kind != yaml.MappingNode {
		v.fail("is "+v.kind(), form)
		return
	}
	first := map[string]int{}
	for i := 0; i+1 < len(v.node.Content); i += 2 {
		keyNode := v.node.Content[i]
		name := keyNode.Value
		at := v.sub(name, v.node.Content[i+1])
		unknown := value{v.d, v.key, keyNode}
		switch decode, ok := known[name]; {
		case keyNode.Kind != yaml.ScalarNode:
			unknown.fail("a key is not text", form)
		case first[name] > 0:
			unknown.fail(fmt.Sprintf("%s is already set in line %d", shown(name), first[name]), "keep one of the two")
		case !ok:
			unknown.fail("unknown key "+shown(name), suggest(name, known))
		default:
			first[name] = keyNode.Line
			decode(at)
		}
	}
}

// elements returns the elements of a list.
func (v value) elements(form string) []value {
	if v.node.Kind != yaml.SequenceNode {
		v.fail("is "+v.kind(), form)
		return nil
	}
	var all []value
	for i, node := range v.node.Content {
		all = append(all, v.sub("["+strconv.Itoa(i)+"]", node))
	}
	return all
}

// listOrOne returns the elements of a list, which is not to be empty, or the value itself where it is no list; never nil.
func (v value) listOrOne(form string) []value {
	if v.node.Kind != yaml.SequenceNode {
		return []value{v}
	}
	if len(v.node.Content) == 0 {
		v.fail("is empty", form)
		return []value{}
	}
	return v.elements(form)
}

// scalar returns the text of a scalar whose tag is one of tags, environment
// variables filled in. Text that came from an environment variable has
// whatever type is wanted.
func (v value) scalar(form string, tags ...string) (text string, ok bool) {
	if v.node.Kind != yaml.ScalarNode {
		v.fail("is "+v.kind(), form)
		return "", false
	}
	text, expanded, err := expand(v.node.Value)
	if err != nil {
		v.fail(err.Error(), "")
		return "", false
	}
	if !expanded && !slices.Contains(tags, v.node.Tag) {
		v.fail("is "+v.kind(), form)
		return "", false
	}
	return text, true
}

// text stores a text that is not empty and that check accepts.
func (v value) text(into *string, form string, check func(string) error) {
	s, ok := v.scalar(form, "!!str")
	if !ok {
		return
	}
	if s == "" {
		v.fail("is empty", form)
		return
	}
	if check != nil {
		if err := check(s); err != nil {
			v.fail(v.shown()+" "+err.Error(), form)
			return
		}
	}
	*into = s
}

// secret stores a text that is never shown. A number is taken as it is written.
func (v value) secret(into *string) {
	if s, ok := v.scalar("write it in quotes", "!!str", "!!int", "!!float"); ok {
		*into = s
	}
}

// integer stores a whole number between low and high.
func (v value) integer(into *int, low, high int) {
	form := fmt.Sprintf("write a whole number from %d to %d", low, high)
	s, ok := v.scalar(form, "!!int")
	if !ok {
		return
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < low || n > high {
		v.fail(v.shown()+" is not a whole number in range", form)
		return
	}
	*into = n
}

// boolean stores a truth value; yes, no, on and off count, as they do in Python's YAML.
func (v value) boolean(into *bool) {
	const form = "write true or false"
	s, ok := v.scalar(form, "!!bool", "!!str")
	if !ok {
		return
	}
	switch strings.ToLower(s) {
	case "true", "yes", "on":
		*into = true
	case "false", "no", "off":
		*into = false
	default:
		v.fail(v.shown()+" is not a truth value", form)
	}
}

// duration stores a duration between low and high. A bare number is seconds
// where seconds is set, else refused.
func (v value) duration(into *time.Duration, low, high time.Duration, seconds bool) {
	form := fmt.Sprintf("write a duration such as 15s or 2m, from %s to %s", short(low), short(high))
	s, ok := v.scalar(form, "!!str", "!!int", "!!float")
	if !ok {
		return
	}
	d, err := time.ParseDuration(s)
	if number, numErr := strconv.ParseFloat(s, 64); numErr == nil {
		if !seconds {
			v.fail(v.shown()+" has no unit", form)
			return
		}
		d, err = -1, nil // what a Duration can't hold (NaN, too) is out of range
		if number >= 0 && number < 1e9 {
			d = time.Duration(number * float64(time.Second))
		}
	}
	switch {
	case err != nil:
		v.fail(v.shown()+" is not a duration", form)
	case d < low || d > high:
		v.fail(v.shown()+" is out of range", form)
	default:
		*into = d
	}
}

// short is a duration without zero parts: "5m" for 5m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	return s
}

// oneOf stores the value that belongs to one of the words.
func oneOf[T any](v value, into *T, words map[string]T) {
	names := sortedKeys(words)
	form := "write " + strings.Join(names[:len(names)-1], ", ") + " or " + names[len(names)-1]
	s, ok := v.scalar(form, "!!str")
	if !ok {
		return
	}
	chosen, ok := words[s]
	if !ok {
		v.fail(v.shown()+" is not known", form)
		return
	}
	*into = chosen
}

// expand replaces ${NAME} and ${NAME:-default} by environment variables, and
// $${ by ${. Its errors show names, never values.
func expand(s string) (text string, expanded bool, err error) {
	var out strings.Builder
	for {
		before, after, found := strings.Cut(s, "${")
		if !found {
			out.WriteString(s)
			return out.String(), expanded, nil
		}
		expanded = true
		if strings.HasSuffix(before, "$") {
			out.WriteString(before[:len(before)-1] + "${")
			s = after
			continue
		}
		out.WriteString(before)
		reference, rest, closed := strings.Cut(after, "}")
		name, fallback, hasFallback := strings.Cut(reference, ":-")
		if !closed || !validEnvName(name) {
			return "", true, fmt.Errorf("${ is not followed by a variable's name and }; write ${NAME} or ${NAME:-default}, or $${ for the characters themselves")
		}
		env, set := os.LookupEnv(name)
		switch {
		case env == "" && hasFallback: // as the shell does: unset or empty
			env = fallback
		case !set:
			return "", true, fmt.Errorf("environment variable %s is not set; set it, or write ${%s:-default}", name, name)
		}
		out.WriteString(env)
		s = rest
	}
}

func validEnvName(name string) bool {
	for i, c := range []byte(name) {
		letter := c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return name != ""
}
