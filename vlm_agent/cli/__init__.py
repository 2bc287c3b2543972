"""The ``vlm-agent`` command: what each subcommand takes and does."""
