# SPDX-License-Identifier: Apache-2.0
"""The commands that serve: serve, check-config.

Invariant: each imports what it needs when it runs. Owned by the main thread.
"""

from __future__ import annotations

from argparse import Namespace


def run_serve(arguments: Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    from ingestd.config.settings import Overrides, load

    overrides = Overrides(
        store=arguments.store,
        listen=arguments.listen,
        metrics=arguments.metrics,
        engine=arguments.engine,
    )
    settings = load(arguments.config, overrides)
    from ingestd.daemon.run import serve

    return serve(settings)


def run_check_config(arguments: Namespace) -> int:
    """Print the effective configuration, which is itself one that can be used."""
    from ingestd.config.settings import effective_toml, load

    text = effective_toml(load(arguments.config))
    print(f"# {arguments.config} is valid; with all defaults it reads:\n")
    print(text, end="")
    return 0
