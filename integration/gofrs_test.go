package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/gofrs/flock"
)

func init() { works["gofrs"] = gofrs }

// gofrs is a Go program that locks by gofrs/flock: "hold PATH" or "try PATH".
func gofrs(args []string) error {
	if len(args) != 2 {
		return errors.New("usage: hold|try PATH")
	}
	lock := flock.New(args[1])
	if args[0] == "try" {
		ctx, cancel := context.WithTimeout(context.Background(), half)
		defer cancel()
		if ok, err := lock.TryLockContext(ctx, 20*time.Millisecond); !ok {
			return fmt.Errorf("not locked: %w", err)
		}
		return lock.Unlock()
	}
	if err := lock.Lock(); err != nil {
		return err
	}
	fmt.Println("held")
	_, _ = io.Copy(io.Discard, os.Stdin) // till its end
	return lock.Unlock()
}
