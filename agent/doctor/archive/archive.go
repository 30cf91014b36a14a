// Package archive writes the one file that is sent to support. The trap is the secret that travels
// in it: what is known to be secret is taken out of every byte, and what may be is left out.
package archive
