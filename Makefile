# make test and make demo are all that a newcomer needs; see README.md.

GO      ?= go
PREFIX  ?= /usr/local
DESTDIR ?=
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -X main.version=$(VERSION)

.PHONY: build test lint bench soak demo install uninstall packages clean

build:
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/lockfs ./cmd/lockfs

# Debian's packages that the tests use: installed where missing, by root only.
packages:
	scripts/packages.sh

test: packages
	scripts/test.sh

lint:
	scripts/lint.sh

# Measures lockfs, and what it stands on, on this machine, and writes it into docs/performance.md: eight to ten minutes.
bench: packages
	LOCKFS_BENCH=docs $(GO) test -count=1 -v -run '^TestBench$$' -timeout 30m ./integration
	$(GO) run ./integration/sim -backend redis,zookeeper -sessions 1000 -docs docs/performance.md
	$(GO) test -run '^$$' -bench . ./fs/locks

# Mounts and servers broken at random until 10,000 locks were taken on each back end; 100 cut-offs and 100 freezes with on_lost
# KILL; and the same with bugs planted in lockfs, which must be found: docs/reliability.md, 'Shown by faults'. About an hour.
# make soak GOAL=200 for 200 locks, and as much less of the cut-offs and freezes.
soak: packages
	$(GO) vet -tags soak ./integration/faults
	LOCKFS_FAULT_GOAL=$(GOAL) $(GO) test -tags soak -count=1 -v -timeout 90m -run 'TestSoak$$|TestInTime$$|TestPlanted$$' ./integration/faults

demo:
	scripts/demo.sh

# The link in /sbin is what mount(8) looks for with -t lockfs; for the type
# fuse.lockfs it needs the package fuse3 and no link.
install: build
	install -D -m 755 bin/lockfs $(DESTDIR)$(PREFIX)/sbin/lockfs
	install -D -m 644 config/lockfs.example.yml $(DESTDIR)$(PREFIX)/share/doc/lockfs/lockfs.example.yml
	install -d $(DESTDIR)$(PREFIX)/share/bash-completion/completions $(DESTDIR)/sbin
	bin/lockfs completion bash >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/lockfs
	ln -sf $(PREFIX)/sbin/lockfs $(DESTDIR)/sbin/mount.lockfs

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/sbin/lockfs $(DESTDIR)/sbin/mount.lockfs \
		$(DESTDIR)$(PREFIX)/share/doc/lockfs/lockfs.example.yml \
		$(DESTDIR)$(PREFIX)/share/bash-completion/completions/lockfs

clean:
	rm -rf bin
