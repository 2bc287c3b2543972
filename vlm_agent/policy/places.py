"""Where a policy lies: a folder, one that ships, or the hub's cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from vlm_agent.common.errors import UserError, nearest
from vlm_agent.common.shipped import SHIPPED
from vlm_agent.policy.backbone.loading import hub_is_reachable
from vlm_agent.policy.strangers import check_harmless

POLICY_FILE = "policy.json"
"""Every policy's folder has it."""


def policy_folder(name: str | Path, **options: Any) -> Path:
    """The folder of a policy, downloaded if the name is one of the hub's.

    Args:
        name: A folder, a policy that ships, or a name on the hub.
        options: Of the download.

    Raises:
        UserError: There is no policy.
    """
    shipped = SHIPPED / "policies" / str(name)
    if str(name).isidentifier() and shipped.is_dir():
        return shipped
    folder = Path(name).expanduser()
    if not folder.is_dir() and _may_be_on_the_hub(str(name)):
        folder = _download(str(name), **options)
    if not (folder / POLICY_FILE).is_file():
        raise UserError(f"no policy in the folder {str(folder)!r} (no {POLICY_FILE}){_hint(name)}")
    check_harmless(folder)
    return folder


def _hint(name: str | Path) -> str:
    """The policy of the nearest name, among those that ship and those that runs here left."""
    folder = Path(name).expanduser()
    parents = {folder.parent, Path("checkpoints")}
    left = [path.parent for parent in parents for path in parent.glob(f"*/{POLICY_FILE}")]
    shipped = [path.name for path in (SHIPPED / "policies").glob("*")]
    close = nearest(str(name), [*map(str, left), *shipped], limit=1)
    hint = "".join(f"; did you mean {other!r}?" for other in close)
    run, _, kind = folder.name.rpartition("_")
    if folder.parent.name == "checkpoints" and (SHIPPED / "recipes" / f"{run}.yaml").is_file():
        command = "sft" if kind == "final" else "train"
        hint += f" (it is made by: vlm-agent {command} --config recipes/{run}.yaml)"
    return hint


def _may_be_on_the_hub(name: str) -> bool:
    """Whether a name is like ``user/policy``, and no path."""
    return not name.startswith((".", "/", "~")) and name.count("/") == 1


def _download(name: str, **options: Any) -> Path:
    offline = options.pop("local_files_only", False) or not hub_is_reachable()
    try:
        return Path(snapshot_download(name, local_files_only=offline, **options))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        asked = "the hub's cache (the hub was not asked)" if offline else "the Hugging Face hub"
        raise UserError(
            f"no policy {name!r}: there is no such folder here, and {asked} has none of that name"
            f"{_hint(name)}"
        ) from error
