# SPDX-License-Identifier: Apache-2.0
"""Everything that tests ingestd; a package, so that tests share what is in support/."""
