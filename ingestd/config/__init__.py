# SPDX-License-Identifier: Apache-2.0
"""The configuration: models and loading (settings), checks across them, problems in words."""
