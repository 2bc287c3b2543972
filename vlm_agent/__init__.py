"""vlm-agent: fine-tune a vision-language model with PPO so that it moves a robot arm with words.

Importing the package registers the ``vlm_agent/…`` environments with gymnasium.
"""

import gymnasium

__version__ = "0.1.0"

for _name, _kwargs in {
    "LanguageAction": {},
    "PickPlaceCan": {"task": "PickPlaceCan"},
    "Lift": {"task": "Lift"},
}.items():
    gymnasium.register(
        id=f"vlm_agent/{_name}-v0",
        entry_point="vlm_agent.world.robosuite.env:LanguageActionEnv",
        kwargs=_kwargs,
    )
