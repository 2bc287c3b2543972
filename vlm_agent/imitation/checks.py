"""What a warm start cannot do."""

from __future__ import annotations

from vlm_agent.common.errors import UserError
from vlm_agent.recipe.recipe import Recipe


def check_warm_start(recipe: Recipe) -> None:
    """Refuse a recipe that asks for what only PPO does.

    Raises:
        UserError: Naming the key.
    """
    if recipe.model.mask_senseless_words:
        raise UserError(
            "mask_senseless_words: a warm start learns all of the expert's words; "
            "set it for PPO and evaluation"
        )
    if recipe.critic.state_coef:
        raise UserError("state_coef: is PPO's; a warm start learns to see by the expert's words")
