# SPDX-License-Identifier: Apache-2.0
#
# make fresh  builds, checks and tests a clone on minimal systems of Debian 12 and 13
#
# As root and as an ordinary user; and what the Dockerfile says, in roots as well. FRESH passes
# options on, such as FRESH='--suite trixie --user root --step run'; --help has all. The archive's
# address, pip's index, proxies and certificates are those of this machine. What is downloaded is
# kept in INGESTD_FRESH_CACHE, or in ingestd-fresh below the user's cache directory.

.PHONY: fresh
fresh: $(BUILD)/venv.stamp ## builds, checks and tests a clone on minimal systems of Debian 12 and 13
	@$(BIN)/python tests/fresh/run_fresh.py $(FRESH)
