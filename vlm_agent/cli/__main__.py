"""``python -m vlm_agent.cli`` is the ``vlm-agent`` command."""

from vlm_agent.cli.main import run

if __name__ == "__main__":
    run()
