"""The policy that training started from, to which ``kl_coef`` ties the one being trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file

from vlm_agent.policy.decisions import evaluate_actions
from vlm_agent.policy.places import policy_folder
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.runs.begin import start_policy

MODULES = ".modules_to_save.default."
"""In the names of what is trained beside adapters."""


class ReferencePolicy:
    """The policy as it was: copies of its trained weights, which take their place for a moment.

    With LoRA that is a second adapter, not a second model; a frozen vision tower is shared.

    Args:
        policy: The policy being trained.
        weights: The start's, in the order of ``policy.backbone_parameters()``; by default what
            they are now.
    """

    def __init__(self, policy: VLMPolicy, weights: Sequence[torch.Tensor] | None = None) -> None:
        self.policy = policy
        self._trained = policy.backbone_parameters()
        start = [p.detach() for p in self._trained] if weights is None else weights
        self._start = [
            w.to(p.device, p.dtype, copy=True) for w, p in zip(start, self._trained, strict=True)
        ]

    @torch.no_grad()
    def log_probs(self, inputs: dict[str, torch.Tensor], actions_B: torch.Tensor) -> torch.Tensor:
        """Its log-probabilities of given words, (B,)."""
        with self._in_place():
            return evaluate_actions(self.policy, inputs, actions_B)[0]

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for number, parameter in enumerate(self._trained):
            held = self._start[number].to(parameter.device)  # the policy may have moved
            parameter.data, self._start[number] = held, parameter.data


def make_reference(policy: VLMPolicy, recipe: Recipe, is_start: bool) -> ReferencePolicy | None:
    """The reference of a run, if its recipe has ``kl_coef``: the policy that it started from.

    Args:
        policy: The policy being trained.
        recipe: The run.
        is_start: Whether the policy is what the run starts from; in a resumed run, the start is
            made or read again.

    Raises:
        UserError: What the run started from is not to be had any more.
    """
    if not recipe.ppo.kl_coef:
        return None
    if is_start:
        return ReferencePolicy(policy)
    if not recipe.model.use_peft:
        return ReferencePolicy(policy, start_policy(recipe).backbone_parameters())
    start = recipe.run.init_from
    return ReferencePolicy(policy, _start_weights(policy, policy_folder(start) if start else None))


def _start_weights(policy: VLMPolicy, folder: Path | None) -> list[torch.Tensor]:
    """What the weights that are trained were at the start, in their order.

    Args:
        policy: With adapters.
        folder: The saved policy that the run started from; ``None`` for a fresh one.
    """
    known = dict(policy.backbone.named_parameters())
    trained = [name for name, parameter in known.items() if parameter.requires_grad]
    if folder is not None:
        saved = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
        return [saved[_saved_name(name)] for name in trained]
    weights = []
    for name in trained:
        if MODULES in name:  # PEFT keeps what it copied
            weights.append(known[name.replace(MODULES, ".original_module.")])
        else:  # a fresh adapter adds nothing: its second factor is zero
            weights.append(known[name] * 0 if ".lora_B." in name else known[name])
    return [weight.detach() for weight in weights]


def _saved_name(name: str) -> str:
    """A parameter's name in an adapter's file."""
    return name.replace(MODULES, ".").replace(".default.", ".")
