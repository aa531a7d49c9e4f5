# SPDX-License-Identifier: Apache-2.0
#
# make bench   measures ingestd beside other receivers, and writes the figures and
#              the picture of docs/performance.md anew; BENCH_ARGS go to the program,
#              for example BENCH_ARGS="--rounds 3 --no-docs"
#
# make bench-ack   measures what acknowledgements cost, for the same document
#
# Needs socat, netcat-openbsd and mbuffer beside what a build needs, a quiet
# machine and some 15 GiB of disk.

.PHONY: bench bench-ack
bench-ack: build ## measures what acknowledgements cost
	$(BIN)/python bench/ack.py $(BENCH_ARGS)

bench: build ## measures ingestd beside other receivers (not part of the tests)
	$(BIN)/python bench/run.py $(BENCH_ARGS)
