// Package doctor checks every layer between the device and its cloud, in order, and names the one
// that fails: cause, side and repair. The trap is the doctor who does harm: nothing is changed on
// disk or TPM, and the running session is never thrown out by its own client id.
package doctor
