"""What comes with the package: recipes, prompts, accelerate's configurations, policies."""

from __future__ import annotations

from pathlib import Path

SHIPPED = Path(__file__).parents[1] / "shipped"
"""The folder; in a checkout, links to where people edit these things."""
