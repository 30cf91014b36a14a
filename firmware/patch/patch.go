// Package patch makes a part out of an object of the repository and, where it is a delta, of an
// old part. It works segment by segment (docs/bundle-format.md), each of which can be made and
// checked without the others, so memory is bounded whatever the part's size and an interrupted
// download goes on at the segment it had come to. The trap: the object is hostile until its
// output has the hash that the manifest names, so nothing it says sizes a buffer.
package patch
