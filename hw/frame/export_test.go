package frame

// Compile gives the Split of a Config, and the bytes a frame may have.
func Compile(c Config) (Split, int, error) {
	f, err := c.compile()
	return f.split, f.max, err
}
