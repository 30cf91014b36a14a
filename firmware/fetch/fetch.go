// Package fetch gets files of the repository over HTTP, and goes on after any cut where it was.
// The trap: a server may answer another question than the one that was asked (the whole file, another
// range, a newer file), so each answer is held against the question, and the bytes are still
// hostile.
package fetch
