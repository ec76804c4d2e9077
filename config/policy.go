package config

import (
	"errors"
	"path"
	"strings"
)

// For returns the policy for a name below the mount point.
func (c *Config) For(name string) Policy {
	for i := range c.Policies {
		if Match(c.Policies[i].Pattern, name) {
			return c.Policies[i].Policy
		}
	}
	return c.Policy
}

// anyDepth is the pattern component that stands for any number of components, none included.
const anyDepth = "**"

// Match reports whether pattern matches the whole name: component by
// component as path.Match does, "**" standing for any number of components,
// none included. A pattern that checkPattern refuses matches nothing.
//
// Only the last "**" passed is ever tried again, longer by one: what an
// earlier one could still give, the last one can give too. So the time is
// bounded by components × components, whatever the pattern.
func Match(pattern, name string) bool {
	var againPattern, againName string // where to go on from the last "**"
	again := false
	for {
		part, restPattern := cut(pattern)
		if part == anyDepth {
			again, againPattern, againName = true, restPattern, name
			pattern = restPattern
			continue
		}
		if pattern == "" && name == "" {
			return true
		}
		component, restName := cut(name)
		if pattern != "" && name != "" && matchComponent(part, component) {
			pattern, name = restPattern, restName
			continue
		}
		if !again || againName == "" {
			return false
		}
		_, againName = cut(againName)
		pattern, name = againPattern, againName
	}
}

func matchComponent(pattern, component string) bool {
	ok, err := path.Match(pattern, component)
	return ok && err == nil
}

// cut splits a path after its first component.
func cut(s string) (component, rest string) {
	component, rest, _ = strings.Cut(s, "/")
	return component, rest
}

// checkPattern says what is wrong with a pattern.
func checkPattern(pattern string) error {
	for component := range strings.SplitSeq(pattern, "/") {
		_, err := path.Match(component, "")
		switch {
		case component == "" || component == "." || component == "..":
			return errors.New(`has an empty, "." or ".." component`)
		case component != anyDepth && strings.Contains(component, anyDepth):
			return errors.New(`has "**" beside other characters`)
		case err != nil:
			return errors.New("has a bracket or backslash that is not closed")
		}
	}
	return nil
}
