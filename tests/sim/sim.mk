# SPDX-License-Identifier: Apache-2.0
#
# The simulator: tests/sim/README.md.

.PHONY: sim

sim: build
	@PYTHONPATH=tests SEED="$(SEED)" STEPS="$(STEPS)" SECONDS="$(SECONDS)" TRACE="$(TRACE)" \
		SANITIZE="$(SANITIZE)" $(BIN)/python -m sim.run
