"""What each subcommand of ``vlm-agent`` takes and does; heavy imports wait until it is run."""
