package listener

// Lose closes the listening socket behind the listener's back.
func (l *Listener) Lose() { _ = l.tcp.Close() }
