"""Format versions of what is written to disk, so that a later version knows what it reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_agent.common.errors import UserError

KEY = "format_version"

VERSION = 3
"""What is written now, with a manifest in every folder of a policy; 2 had none.

1 is what had no version yet: the state's critic stood in the place of the
value head, the fact ``gripper`` was called ``gripper_closed``, and settings were one flat list."""


def version_of(values: Mapping[str, Any], what: str) -> int:
    """The format version of something that was read.

    Args:
        values: Its JSON object.
        what: Names it in the message.

    Raises:
        UserError: It was written by a later version of the package.
    """
    version = values.get(KEY, 1)
    if version > VERSION:
        raise UserError(
            f"{what} has format version {version}, and this vlm-agent reads up to {VERSION}: "
            "it was written by a later version"
        )
    return version
