package hw

import (
	"errors"
	"fmt"
	"time"

	"ferrule/hw/point"
	"ferrule/hw/profile"
	"ferrule/internal/hint"
	"ferrule/internal/quantity"
)

// checker collects mistakes and says where they are.
type checker struct {
	where    string
	problems []error
}

func (k *checker) in(kind, name string) *checker {
	return &checker{where: fmt.Sprintf("%s, %s %q", k.where, kind, name)}
}

func (k *checker) wrong(key, repair string, err error) {
	err = fmt.Errorf("%s: %s: %w", k.where, key, err)
	if repair != "" {
		err = hint.With(err, repair)
	}
	k.problems = append(k.problems, err)
}

// name checks the name of a line, a unit or a point.
func (k *checker) name(s string) {
	if err := profile.CheckName(s); err != nil {
		k.wrong("name", "", err)
	}
}

// codec makes the codec of a point; its errors name the key.
func (k *checker) codec(s point.Spec) point.Codec {
	codec, err := point.NewCodec(s)
	if e, ok := errors.AsType[*point.SpecError](err); ok {
		k.wrong(e.Key, "", e.Err)
	} else if err != nil {
		k.wrong("type", "", err)
	}
	return codec
}

// duration checks a length of time; 0 stands for the standard.
func (k *checker) duration(key string, d quantity.Duration, standard, low, high time.Duration) time.Duration {
	switch {
	case d == 0:
		return standard
	case d.Std() < low || d.Std() > high:
		k.wrong(key, "", fmt.Errorf("%s is not between %s and %s", d, low, quantity.Duration(high)))
		return standard
	}
	return d.Std()
}

func orDefault(s, standard string) string {
	if s == "" {
		return standard
	}
	return s
}
