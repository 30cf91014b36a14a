// Package bundle writes what package firmware reads: manifests, objects and the repository that
// signs them. It runs at the release engineer's, never on a device. The trap is publishing half a
// release: a repository is one folder of static files that devices read while it is written, so
// the file that makes a release visible is written last.
//
// Tests that need a signed repository, good or bad, make one with firmware/bundle/bundletest.New.
package bundle
