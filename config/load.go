package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// The environment variables that lockfs looks at, the latter two those of the Python library.
const (
	EnvFile      = "LOCKFS_CONFIG"
	EnvFileAlias = "ISF_DISTRIBUTED_LOCK_CONFIG"
	EnvBlock     = "ISF_DISTRIBUTED_LOCK_BLOCK"
)

// SystemFile is used where it exists and nothing else is named.
const SystemFile = "/etc/lockfs.yml"

// maxFile bounds what is read: a configuration is small, /dev/zero is not.
const maxFile = 1 << 20

// Blocked reports whether $ISF_DISTRIBUTED_LOCK_BLOCK turns locking off.
func Blocked() bool { return os.Getenv(EnvBlock) != "" }

// Option is a key of the file set by the command line, which wins over the file.
type Option struct{ Key, Value string }

// Find returns the file that Load reads for the same argument: file itself,
// else $LOCKFS_CONFIG, $ISF_DISTRIBUTED_LOCK_CONFIG or SystemFile; "" means the default
// configuration.
func Find(file string) string { return find(file, SystemFile) }

func find(file, system string) string {
	for _, candidate := range []string{file, os.Getenv(EnvFile), os.Getenv(EnvFileAlias)} {
		if candidate != "" {
			return candidate
		}
	}
	// One that exists and can't be read is an error of Load's, not a reason to go on.
	if _, err := os.Stat(system); !errors.Is(err, fs.ErrNotExist) {
		return system
	}
	return ""
}

// Load reads the configuration that Find finds and applies the options. The
// error tells all that is wrong, a line each (errors.Join).
func Load(file string, options ...Option) (*Config, error) {
	source, err := Read(file, options...)
	if err != nil {
		return nil, err
	}
	return source.Config()
}

// Source is what a configuration is made of. It may hold passwords. It is for
// handing on to another process, which is to have the same configuration although the
// file may have changed since.
type Source struct {
	// File is the file's name, empty for the default configuration; Data its contents.
	File    string
	Data    []byte
	Options []Option
}

// Read reads the file that Find finds, and decodes nothing.
func Read(file string, options ...Option) (Source, error) {
	s := Source{File: Find(file), Options: options}
	if s.File == "" {
		return s, nil
	}
	var err error
	if s.Data, err = readSmall(s.File); err != nil {
		return s, fmt.Errorf("configuration can't be read: %w; name another with -c FILE or $%s", err, EnvFile)
	}
	return s, nil
}

// Config decodes the source, as Load does.
func (s Source) Config() (*Config, error) {
	if s.File != "" {
		return Parse(s.File, s.Data, s.Options...)
	}
	c, err := Default()
	if err != nil {
		return nil, err
	}
	dec := &decoder{file: "-o"}
	d := &draft{Config: c}
	d.override(dec, s.Options)
	if len(dec.errs) > 0 {
		return nil, errors.Join(dec.errs...)
	}
	return d.finish(), nil
}

// readSmall reads a file of at most maxFile bytes.
func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // nothing was written
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s: larger than 1 MiB", path)
	}
	return data, nil
}

// Parse decodes the contents of a file, of which file is the name in
// messages and the place from which relative paths start.
func Parse(file string, data []byte, options ...Option) (*Config, error) {
	dec := &decoder{file: file}
	d := &draft{Config: defaults()}
	d.File = file
	root, err := parseYAML(file, data)
	if err != nil {
		return nil, err
	}
	top := value{d: dec}.sub("", root)
	if root.Kind == yaml.SequenceNode {
		top.backendList(&d.Backends)
	} else {
		d.mapping(top)
	}
	dec.file = "-o"
	d.override(dec, options)
	if len(dec.errs) > 0 {
		return nil, errors.Join(dec.errs...)
	}
	d.Ignored = dec.ignored
	return d.finish(), nil
}

// parseYAML returns the only document of a file.
func parseYAML(file string, data []byte) (*yaml.Node, error) {
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var document, more yaml.Node
	err := decoder.Decode(&document)
	switch {
	case errors.Is(err, io.EOF) || err == nil && len(document.Content) == 0:
		return nil, fmt.Errorf("%s:1: is empty; write backends: [{type: file}], or more", file)
	case err != nil:
		return nil, syntaxError(file, data, err)
	}
	switch err := decoder.Decode(&more); {
	case err == nil:
		return nil, fmt.Errorf("%s:%d: a second document begins; keep one", file, more.Line)
	case !errors.Is(err, io.EOF):
		return nil, syntaxError(file, data, err)
	}
	return document.Content[0], nil
}

var (
	yamlLine    = regexp.MustCompile(`^yaml: line (\d+): (.*)$`)
	yamlUnknown = regexp.MustCompile(`(?s)^yaml: unknown anchor '(.*)' referenced$`)
)

// syntaxError gives the parser's error our form. An alias without an anchor is mostly a
// password that begins with a star, so its name is not shown.
func syntaxError(file string, data []byte, err error) error {
	message := err.Error()
	if m := yamlUnknown.FindStringSubmatch(message); m != nil {
		before, _, _ := strings.Cut(string(data), "*"+m[1])
		line := 1 + strings.Count(before, "\n")
		return fmt.Errorf("%s:%d: a value begins with * and means an alias that is not there; write it in quotes", file, line)
	}
	line := 1
	if m := yamlLine.FindStringSubmatch(message); m != nil {
		line, _ = strconv.Atoi(m[1]) // digits by the pattern
		message = m[2]
		if strings.HasPrefix(message, "did not find expected") {
			line++ // here the parser counts from 0 (yaml.v3 v3.0.1, parser.fail)
		}
	}
	return fmt.Errorf("%s:%d: not YAML: %s; look for a missing space, quote or bracket here or above",
		file, line, strings.TrimPrefix(message, "yaml: "))
}
