# SPDX-License-Identifier: Apache-2.0
#
# make faults   runs every test that is marked with a fault, N times in random order, and
#               writes how often each was tried, and what was lost, to docs/reliability.md;
#               FAULTS_ARGS go to the program, for example FAULTS_ARGS="--seed 7 --no-docs"

.PHONY: faults
faults: build ## injects every fault of docs/reliability.md N times and records lost bytes
	$(BIN)/python tests/fault/run_faults.py --rounds $(or $(N),1) $(FAULTS_ARGS)
