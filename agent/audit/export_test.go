package audit

// Flush writes what waits, as Run does.
func (l *Log) Flush() error {
	l.writing.Lock()
	defer l.writing.Unlock()
	return l.flush()
}

// Sign signs the head, as Run does.
func (l *Log) Sign() error {
	l.writing.Lock()
	defer l.writing.Unlock()
	return l.sign()
}
