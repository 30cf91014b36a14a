package authorize

import (
	"fmt"
	"time"
)

// Fill spends tokens that expire at a time until no more are taken.
func (a *Authority) Fill(expires time.Time) error {
	for i := len(a.spent.used); i < capacity; i++ {
		if r := a.spent.add(identify("key", fmt.Sprint(i)), expires); r != nil {
			return r
		}
	}
	return nil
}
