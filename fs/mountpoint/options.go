package mountpoint

import (
	"fmt"
	"slices"
	"strings"
)

// Options are what stands behind -o, sorted.
type Options struct {
	// Config is config=FILE.
	Config string
	// Keys are the options that set a key of the configuration, in their order.
	Keys []Key
	// AllowOther lets other users than the mounting one in.
	AllowOther bool
	// Kernel are options to hand on to the kernel or fusermount3.
	Kernel []string
}

// Key is KEY=VALUE.
type Key struct{ Key, Value string }

var (
	configKeys = []string{"cluster", "node", "lock_on_open", "no_write_permission", "on_lost", "session_ttl"}

	// kernelOptions go on to the kernel, which knows them for every file system.
	kernelOptions = []string{"noexec", "exec"}

	// mountOptions are mount(8)'s and fstab's own, those that are always as
	// they say here (nodev, nosuid), and those that change nothing for FUSE
	// (the times are the server's).
	mountOptions = []string{"rw", "defaults", "auto", "noauto", "_netdev", "nofail", "user", "nouser", "users",
		"noatime", "nodiratime", "relatime", "strictatime", "sync", "dirsync", "owner", "group", "noowner", "nogroup", "async", "atime", "diratime", "dev", "nodev", "suid", "nosuid",
		"default_permissions", "nomand", "silent", "loud", "mand", "norelatime", "nostrictatime", "nolazytime", "lazytime", "iversion", "noiversion"}

	// prefixes of options that are comments to others.
	commentOptions = []string{"x-", "X-", "comment=", "user=", "fsname=", "subtype="}
)

// ParseOptions sorts the options of one or more -o. Errors are about usage.
func ParseOptions(lists ...string) (Options, error) {
	var o Options
	for option := range strings.SplitSeq(strings.Join(lists, ","), ",") {
		if option == "" {
			continue
		}
		if err := o.add(option); err != nil {
			return Options{}, err
		}
	}
	return o, nil
}

func (o *Options) add(option string) error {
	key, value, hasValue := strings.Cut(option, "=")
	isComment := func(prefix string) bool { return strings.HasPrefix(option, prefix) }
	switch {
	case slices.ContainsFunc(commentOptions, isComment):
	case key == "config" || slices.Contains(configKeys, key):
		if value == "" {
			return fmt.Errorf("mount option %s has no value; write %s=VALUE", key, key)
		}
		if key == "config" {
			o.Config = value
			return nil
		}
		o.Keys = append(o.Keys, Key{key, value})
	case hasValue:
		return o.unknown(key)
	case key == "allow_other":
		o.AllowOther = true
	case key == "ro":
		return fmt.Errorf("mount option ro makes no sense: whoever locks writes; leave it out")
	case key == "remount":
		return fmt.Errorf("mount option remount is not supported; unmount and mount again")
	case slices.Contains(kernelOptions, key):
		o.Kernel = append(o.Kernel, key)
	case !slices.Contains(mountOptions, key):
		return o.unknown(key)
	}
	return nil
}

func (o *Options) unknown(key string) error {
	return fmt.Errorf("unknown mount option %s; known are config=FILE, %s=…, allow_other and those of mount(8)",
		key, strings.Join(configKeys, "=…, "))
}
