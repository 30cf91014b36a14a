package main

import (
	"context"
	"errors"
)

func (b *builder) raspberry(context.Context) ([]string, error) {
	return nil, errors.New("not there yet")
}
