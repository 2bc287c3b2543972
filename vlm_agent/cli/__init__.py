"""The ``vlm-agent`` command: what each subcommand takes and does; heavy imports wait until it is run."""
