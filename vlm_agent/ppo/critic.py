"""Critics: what judges states while PPO learns, and passes in which it learns alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from vlm_agent.common.errors import UserError
from vlm_agent.common.seeding import derive_rng
from vlm_agent.distributed.guard import check_finite
from vlm_agent.distributed.reductions import parts_of
from vlm_agent.policy.decisions import PolicyOutput
from vlm_agent.policy.heads import StateHead, ValueHead
from vlm_agent.policy.kept import KeptRow
from vlm_agent.policy.places import policy_folder
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.ppo.advantages import explained_variance
from vlm_agent.ppo.losses import value_loss
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.rollout.samples import Samples
from vlm_agent.runs.checkpoints import CRITIC_FILE, STATE_HEAD_FILE, find_critic
from vlm_agent.world.observations import Observations
from vlm_agent.world.pool.pool import EnvPool

NO_STATE = (
    "value_input: 'state' or state_coef, but the environments do not tell their state: make them "
    "with recipe.make_pool(), or EnvPool(..., privileged_state=True)"
)


class ActorCritic(nn.Module):
    """A policy and the critic it is trained with, as the one module that accelerate wraps.

    The critic is the policy's own value head, or one that reads the environments' privileged state
    (an asymmetric actor-critic): no word depends on it, and who uses the policy does without.

    A state head, too, is for training alone: what it has to tell of the environments' state, the
    hidden state must hold, and so the policy learns to see.

    Args:
        policy: The policy.
        state_critic: From privileged states (B, S) to values (B,); ``None`` for the value head.
        learns_values: Whether the critic learns; else the value head stays as it is.
        state_head: From hidden states (B, D) to privileged states (B, S).
    """

    def __init__(
        self,
        policy: VLMPolicy,
        state_critic: ValueHead | None = None,
        learns_values: bool = True,
        state_head: StateHead | None = None,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.state_critic = state_critic
        self.state_head = state_head
        self.learns_values = learns_values
        # A head that nothing is learnt with gets no gradient, for which DDP would wait.
        policy.value_head.requires_grad_(learns_values and state_critic is None)

    @property
    def critic(self) -> nn.Module:
        """What learns to judge states."""
        return self.policy.value_head if self.state_critic is None else self.state_critic

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.policy.device

    def extra_heads(self) -> dict[str, ValueHead | StateHead]:
        """What is no part of the policy, by the names of the files."""
        heads = {CRITIC_FILE: self.state_critic, STATE_HEAD_FILE: self.state_head}
        return {name: head for name, head in heads.items() if head is not None}

    def head_parameters(self) -> list[nn.Parameter]:
        """The parameters of the critic, and of an action head and a state head."""
        heads = [self.critic, self.policy.action_head, self.state_head]
        return [p for head in heads if head is not None for p in head.parameters()]

    def encode(
        self, observations: Observations, kept: Sequence[KeptRow | None] = ()
    ) -> dict[str, torch.Tensor]:
        """:meth:`VLMPolicy.encode`, and ``privileged_state`` (B, S) if a head needs it.

        Raises:
            UserError: One does, and the environments do not tell it.
        """
        inputs = self.policy.encode(observations, kept)
        if self.state_critic is not None or self.state_head is not None:
            if observations.states is None:
                raise UserError(NO_STATE)
            inputs["privileged_state"] = torch.from_numpy(observations.states).to(self.device)
        return inputs

    def forward(self, **inputs: torch.Tensor) -> PolicyOutput:
        """Scores of the policy, values of the critic, states as the state head tells them."""
        states_BS = inputs.pop("privileged_state", None)
        output = self.policy(**inputs)
        if self.state_critic is not None:
            output = output._replace(values=self.state_critic(states_BS))
        if self.state_head is not None:
            output = output._replace(states=self.state_head(output.prompt_ends))
        return output

    @torch.no_grad()
    def critic_inputs(self, **inputs: torch.Tensor) -> torch.Tensor:
        """What the critic reads: hidden states at the prompt's end, or privileged ones, (B, D)."""
        if self.state_critic is not None:
            return inputs["privileged_state"]
        inputs.pop("privileged_state", None)
        return self.policy.prompt_ends(**inputs)


def make_actor_critic(
    policy: VLMPolicy, pool: EnvPool, recipe: Recipe, learns_values: bool = True
) -> ActorCritic:
    """A policy with the critic that the recipe asks for.

    Args:
        policy: The policy.
        pool: Its environments.
        recipe: The run.
        learns_values: Whether the critic learns.

    Raises:
        UserError: A head needs the environments' state, and they do not tell it.
    """
    if not recipe.critic.needs_state:
        return ActorCritic(policy, learns_values=learns_values)
    size = pool.state_size
    if size is None:
        raise UserError(NO_STATE)
    critic = head = None
    if recipe.critic.value_input == "state":
        width, depth = recipe.model.value_head_width, recipe.model.value_head_depth
        critic = _begun(ValueHead(size, width, depth, policy.seed), recipe).to(policy.device)
    if recipe.critic.state_coef:
        hidden = policy.inner_model.config.get_text_config().hidden_size
        head = StateHead(hidden, size, policy.seed).to(policy.device)
    return ActorCritic(policy, critic, learns_values, head)


def load_actor_critic(folder: Path, policy: VLMPolicy) -> ActorCritic | None:
    """A saved policy with the critic that learnt beside it; ``None`` if that was not saved.

    Args:
        folder: The policy's.
        policy: It.
    """
    if policy.recipe.get("value_input", "hidden") == "hidden":
        return ActorCritic(policy)
    weights = find_critic(folder)
    if weights is None:
        return None
    width, depth = policy.recipe["value_head_width"], policy.recipe["value_head_depth"]
    size = weights["hidden.0.weight"].shape[-1] if depth else weights["output.weight"].shape[-1]
    critic = ValueHead(size, width, depth, policy.seed)
    critic.load_state_dict(weights)
    return ActorCritic(policy, critic.to(policy.device))


def make_optimizer(actor_critic: ActorCritic, rates: tuple[float, float]) -> torch.optim.Optimizer:
    """One group for the backbone, one for what is trained of the heads, if anything.

    Args:
        actor_critic: What learns.
        rates: The learning rates of the two.
    """
    heads = [p for p in actor_critic.head_parameters() if p.requires_grad]
    parameters = actor_critic.policy.backbone_parameters(), heads
    groups = [
        {"params": p, "lr": rate, "number": number}
        for number, (p, rate) in enumerate(zip(parameters, rates, strict=True))
        if p
    ]
    return torch.optim.AdamW(groups, eps=1e-5, weight_decay=0.0)


def _begun(critic: ValueHead, recipe: Recipe) -> ValueHead:
    """A critic as the run's start left its own, if that has one of these sizes."""
    init_from = recipe.run.init_from
    if recipe.run.resume_from is not None or init_from is None:
        return critic
    if weights := find_critic(policy_folder(init_from)):
        shapes = {name: weight.shape for name, weight in critic.state_dict().items()}
        if shapes == {name: weight.shape for name, weight in weights.items()}:
            critic.load_state_dict(weights)
    return critic


def fit_critic(
    actor_critic: ActorCritic,
    accelerator: Accelerator,
    samples: Samples,
    returns_TN: np.ndarray,
    *,
    recipe: Recipe,
    epochs: int,
    learning_rate: float,
    purpose: Sequence[int | str] = ("value head",),
) -> float:
    """Teach the critic the returns of a rollout; nothing else changes.

    What it reads is made once, so that a pass costs next to nothing.

    Args:
        actor_critic: Whose critic.
        accelerator: Talks to the other processes; everyone learns from everyone's rollouts, and
            the main process's weights are everyone's in the end.
        samples: This rank's rollout.
        returns_TN: Its targets; NaN where there is none.
        recipe: Has the size of minibatches and the run's seed.
        epochs: Passes.
        learning_rate: Of AdamW.
        purpose: Decides with the seed the order of the samples.

    Returns:
        The variance of all returns that it explains afterwards.

    Raises:
        TrainingError: The loss is not finite; the critic is what it was before that step.
    """
    order = np.array_split(np.arange(len(samples)), -(-len(samples) // recipe.ppo.batch_size))
    sizes = [part for index in order for part in parts_of(index, recipe.ppo.micro_batch_size)]
    with accelerator.autocast():
        parts = [actor_critic.critic_inputs(**samples.inputs(index)) for index in sizes]
    inputs_BD = accelerator.gather(torch.cat(parts))
    returns_B = accelerator.gather(samples.tensor(returns_TN))
    inputs_BD, returns_B = inputs_BD[~returns_B.isnan()], returns_B[~returns_B.isnan()]
    if not len(returns_B):
        return 0.0
    num_batches = min(len(order), len(returns_B))
    critic = actor_critic.critic
    optimizer = torch.optim.AdamW(critic.parameters(), lr=learning_rate)
    for epoch in range(epochs):
        rng = derive_rng(recipe.run.seed, *purpose, epoch)
        for index in np.array_split(rng.permutation(len(returns_B)), num_batches):
            loss = value_loss(critic(inputs_BD[index]), returns_B[index], returns_B[index], None)
            check_finite(loss.detach(), accelerator, f"the critic's own pass {epoch}", "loss")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    # All computed the same, but on GPUs of two kinds not to the last bit; ranks must not drift.
    broadcast_weights(critic, accelerator)
    with torch.no_grad():
        values = critic(inputs_BD).cpu().numpy()
    return explained_variance(values, returns_B.cpu().numpy())


def broadcast_weights(module: nn.Module, accelerator: Accelerator) -> None:
    """Give every process the main process's weights of a module."""
    if accelerator.num_processes > 1:
        for parameter in module.parameters():
            torch.distributed.broadcast(parameter.data, src=0)
