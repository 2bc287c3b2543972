"""What comes with the package: recipes, prompts, accelerate's configurations, policies."""

from __future__ import annotations

from pathlib import Path

SHIPPED = Path(__file__).parents[1] / "shipped"
"""The folder; in a checkout, links to where people edit these things."""

EDITABLE = {
    "recipes": "*.yaml",
    "recipes/suites": "*.yaml",
    "prompts": "*.jinja",
    "accelerate_configs": "*.yaml",
}
"""What people edit: folder -> its files."""


def copy_editable(folder: Path) -> tuple[list[Path], list[Path]]:
    """Copy what people edit into a folder; what is there already is never written over.

    Returns:
        The files that were written, and those that were there.

    Raises:
        OSError: The folder cannot be written.
    """
    written, kept = [], []
    for name, files in EDITABLE.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for source in sorted((SHIPPED / name).glob(files)):
            path = folder / name / source.name
            try:
                with path.open("xb") as file:
                    file.write(source.read_bytes())
                written.append(path)
            except FileExistsError:
                kept.append(path)
    return written, kept
