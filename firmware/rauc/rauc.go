// Package rauc has RAUC install the update where the image comes with it, over D-Bus. RAUC then
// owns the slots and says when one is good; the trap is two owners, so rauc-mark-good.service must
// not run beside the agent.
package rauc
