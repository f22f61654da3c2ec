//go:build mutants

package mutant

import (
	"fmt"
	"os"
	"slices"
)

// Variable is the environment variable that names the mistake to make, if any.
const Variable = "LOCKSTEP_TEST_MUTANT"

var made = Mutant(os.Getenv(Variable))

func init() {
	if made != "" && !slices.Contains(List(), made) {
		panic(fmt.Sprintf("%s=%q: there is no such mutant", Variable, made))
	}
}

// On says whether this process makes the mistake.
func On(m Mutant) bool { return m == made }
