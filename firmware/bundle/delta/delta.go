// Package delta makes the smallest patch that turns one image into another. For every segment it
// chooses the windows of the old image that have most in common with it, wherever they lie. The
// trap is memory: what is kept of the old image is an index of fingerprints, never the image.
package delta
