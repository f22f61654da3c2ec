//go:build e2e

package e2e

// mutantVariable names the mistake that a test build makes.
const mutantVariable = "LOCKSTEP_TEST_MUTANT"
