# SPDX-License-Identifier: Apache-2.0
#
# make vm    boots the newest backports kernel in QEMU with the virtual NIC and runs tests there
#
# Four parts: what the kernel does, ingestd's engine zcrx on it, ingestd as an operator prepares a
# NIC for it, crashes of devices and machines. A boot each, the last one several. VM_PARTS names
# others. To be included by the Makefile. Where this
# host can have no machine a part says why and is skipped, except with CI=true, where nothing may
# be.

VM_PARTS ?= run_vm_tests run_engine_tests run_nic_tests run_crash_tests

.PHONY: vm
vm: build ## boots machines with a virtual network card and runs the tests that need one
	@failed=0; for part in $(VM_PARTS); do \
		status=0; nice -n 10 $(BIN)/python tests/vm/$$part.py || status=$$?; \
		if [ $$status -eq 77 ] && [ "$$CI" != true ]; then \
			echo "vm: $$part SKIPPED, see the reason above"; \
		elif [ $$status -ne 0 ]; then failed=1; fi; \
	done; \
	exit $$failed
