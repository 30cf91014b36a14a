// Package tuf believes a repository of static files as The Update Framework says (specification
// 1.0, section 5): a pinned root, roles with thresholds, and four files that vouch for each other.
// The trap: a file that is well signed may still be old, or not belong to its neighbours, so the
// order of the checks is the protection; and what was believed once is kept, because an older
// one is refused for ever.
package tuf
