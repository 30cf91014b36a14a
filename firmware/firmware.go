// Package firmware carries an update from a signed manifest to a committed slot. It is one state
// machine with one journal, and every step can be done again after a power cut. The trap: what
// boots is decided by the boot loader's environment alone; where the journal disagrees, the
// journal yields.
package firmware
