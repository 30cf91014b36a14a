// Package listener accepts TLS clients whom nobody knows yet, and hands over those who may come in.
package listener
