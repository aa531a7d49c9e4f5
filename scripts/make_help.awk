# SPDX-License-Identifier: Apache-2.0
#
# Prints each target of the makefiles given that has a text behind `##`, in their order.

BEGIN { FS = ":.*## " }

/^[a-z][a-z-]*:.*## / { printf "make %-14s %s\n", $1, $2 }
