# SPDX-License-Identifier: Apache-2.0
#
# make bench   measures ingestd beside other receivers, and writes the figures and
#              the picture of docs/performance.md anew; BENCH_ARGS go to the program,
#              for example BENCH_ARGS="--rounds 3 --no-docs"
#
# make bench-ack   measures what acknowledgements cost, for the same document
#
# make bench-core  counts the core's instructions per receive, by room, below callgrind
#              in the simulator: SEED=n, BENCH_ARGS="--functions 20"; needs valgrind alone
#
# make bench-small   measures what small and slow flows cost: bytes written, store used,
#              flows per second beside the plainest server; BENCH_ARGS="--flows 1000000"
#
# make bench-stores   measures what flows of well stores notice when another store hangs; as
#              root; BENCH_ARGS="--rounds 3"
#
# make bench-versions  measures this build beside another one: OTHER=path of its program
#
# make compare  measures the ways from a TCP flow to a file with O_DIRECT side by side, for
#              docs/comparison.md; as root; COMPARE_ARGS go to the program
#
# make bench-catalogue  writes a store of many small flows, serves it, and fills the
#              sizing table of docs/operations.md: BENCH_ARGS="--flows 100000 --no-docs"
#
# Needs socat, netcat-openbsd and mbuffer beside what a build needs, a quiet
# machine and some 15 GiB of disk.

.PHONY: bench-small
bench-small: build ## measures what small and slow flows cost (BENCH_ARGS=...)
	$(BIN)/python bench/small.py $(BENCH_ARGS)

.PHONY: bench-stores
bench-stores: build ## measures well stores beside one that hangs (BENCH_ARGS=...)
	$(BIN)/python bench/stores.py $(BENCH_ARGS)

.PHONY: bench bench-ack bench-core bench-versions compare bench-catalogue
bench-ack: build ## measures the cost of acknowledgements
	$(BIN)/python bench/ack.py $(BENCH_ARGS)

bench: build ## compares ingestd with other receivers (not part of the tests)
	$(BIN)/python bench/run.py $(BENCH_ARGS)

bench-core: build ## counts the core's instructions per receive, by room (SEED=n)
	$(BIN)/python bench/core_bench.py $(if $(SEED),--seed $(SEED)) $(BENCH_ARGS)

bench-versions: build ## measures this build beside another one (OTHER=its program, BENCH_ARGS=...)
	@$(BIN)/python bench/versions.py $(OTHER) $(BENCH_ARGS)

compare: build ## measures the ways from a TCP flow to a disk side by side (COMPARE_ARGS=...)
	@$(BIN)/python bench/compare.py $(COMPARE_ARGS)

bench-catalogue: build ## measures a store of a million flows and its catalogue (BENCH_ARGS=...)
	@$(BIN)/python bench/catalogue.py $(BENCH_ARGS)
