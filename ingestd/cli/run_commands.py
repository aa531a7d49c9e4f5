# SPDX-License-Identifier: Apache-2.0
"""The commands that serve: serve, check-config.

Invariant: each imports what it needs when it runs. Owned by the main thread.
"""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from ingestd.errors import ConfigError

if TYPE_CHECKING:
    from ingestd.config.settings import Settings


def run_serve(arguments: Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    from ingestd.config.loading import load
    from ingestd.config.settings import Overrides

    overrides = Overrides(
        store=arguments.store,
        listen=arguments.listen,
        metrics=arguments.metrics,
        control=arguments.control,
        engine=arguments.engine,
        area=arguments.area,
    )
    settings = load(arguments.config, overrides)
    from ingestd.daemon.main import serve
    from ingestd.store.device.output_guard import refuse_streams_to

    # Before the log has its first line.
    for store in settings.store.values():
        refuse_streams_to(store.path)

    return serve(settings)


def run_check_config(arguments: Namespace) -> int:
    """Print the effective configuration, which is itself one that can be used.

    Raises ConfigError, also where a key file cannot be used.
    """
    from ingestd.config.loading import effective_toml, load

    settings = load(arguments.config)
    _check_keys(settings, arguments.config)
    text = effective_toml(settings)
    print(f"# {arguments.config} is valid; with all defaults it reads:\n")
    print(text, end="")
    return 0


def _check_keys(settings: Settings, source: str) -> None:
    """Open every key file, as `serve` will. Raises ConfigError, a line for each problem."""
    from ingestd.keyfile import load_keys

    problems = []
    for name, listener in settings.listener.items():
        try:
            if listener.key_file is not None:
                load_keys(listener.key_file)
        except ConfigError as error:
            problems.append(f"{source}: listener.{name}.key_file: {error}")
    if problems:
        raise ConfigError("\n".join(problems))
