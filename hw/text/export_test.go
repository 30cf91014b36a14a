package text

import "ferrule/hw/frame"

// Split gives the Split of a Config.
func Split(c Config) (frame.Split, error) {
	_, d, err := New(c)
	if err != nil {
		return nil, err
	}
	return d.split(), nil
}
