package redis

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	goredis "github.com/redis/go-redis/v9"

	"lockfs/backends"
)

// failure gives an error of the client or the server its kind. Redis marks
// its errors' kinds by their first word.
func failure(err error) error {
	if err == nil {
		return nil
	}
	for _, kind := range []error{backends.ErrUnavailable, backends.ErrRefused, backends.ErrForeign} {
		if errors.Is(err, kind) {
			return err // the guide has said it
		}
	}
	var answer goredis.Error
	if errors.As(err, &answer) {
		return fmt.Errorf("%w: %w", answerKind(answer.Error()), err)
	}
	var network net.Error
	var verify *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var alert tls.AlertError
	var authority x509.UnknownAuthorityError
	var op *net.OpError
	switch {
	case errors.As(err, &op) && op.Op == "remote error": // the other side's alert
		return fmt.Errorf("%w: TLS: %w", backends.ErrForeign, err)
	case errors.As(err, &verify), errors.As(err, &record), errors.As(err, &alert), errors.As(err, &authority):
		return fmt.Errorf("%w: TLS: %w", backends.ErrForeign, err)
	case errors.As(err, &network), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, goredis.ErrClosed), errors.Is(err, goredis.ErrPoolTimeout), errors.Is(err, goredis.ErrPoolExhausted),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w: %w", backends.ErrUnavailable, err)
	}
	return fmt.Errorf("%w: it does not talk like Redis: %w", backends.ErrForeign, err)
}

func answerKind(text string) error {
	code, _, _ := strings.Cut(text, " ")
	switch code {
	case "LOADING", "MASTERDOWN", "TRYAGAIN", "CLUSTERDOWN", "BUSY", "READONLY", "NOREPLICAS", "MISCONF", "MOVED", "ASK":
		// READONLY and MISCONF too: a fail-over or a full disk passes; Open looks closer. MOVED and ASK: the
		// slot of all keys moves to another node, which the guide will find.
		return backends.ErrUnavailable
	case "OOM":
		return backends.ErrNoSpace
	case "WRONGTYPE":
		return backends.ErrForeign
	}
	if strings.Contains(text, "max number of clients") {
		return backends.ErrUnavailable
	}
	return backends.ErrRefused // NOAUTH, WRONGPASS, NOPERM, an unknown command, …
}
