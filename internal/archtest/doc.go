// Package archtest holds the rules of docs/architecture.md to the code: which
// package may import which, and a few habits that no other tool checks. It has
// only tests; each failure gives the reason of its rule.
package archtest
