# SPDX-License-Identifier: Apache-2.0
#
# The simulator: tests/sim/README.md.

.PHONY: sim

sim: build ## plays the whole worker against a made-up kernel: SEED=n, or SECONDS=n of fresh seeds
	@PYTHONPATH=tests SEED="$(SEED)" STEPS="$(STEPS)" SECONDS="$(SECONDS)" TRACE="$(TRACE)" \
		SANITIZE="$(SANITIZE)" $(BIN)/python -m sim.run

.PHONY: sim-mutants

sim-mutants: build ## puts faults into the core, one by one, and has the simulator find each (MUTANT=part of a name, REPEAT=n)
	@PYTHONPATH=tests SECONDS="$(SECONDS)" MUTANT="$(MUTANT)" REPEAT="$(REPEAT)" $(BIN)/python -m sim.mutants
