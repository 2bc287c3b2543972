"""How long a recipe's process takes for what it does again and again."""

from __future__ import annotations

from dataclasses import dataclass

from vlm_agent.plan.machine import Machine, Work
from vlm_agent.plan.sizes import Sizes
from vlm_agent.recipe.recipe import Recipe

FOUR_BIT_FACTOR = 1.5
"""By which weights of 4 or 8 bits slow a pass down, since they are widened first; taken."""

BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Costs:
    """Seconds of one process.

    Args:
        recipe: What it runs.
        sizes: Of its model and prompts.
        machine: Where.
    """

    recipe: Recipe
    sizes: Sizes
    machine: Machine

    @property
    def num_envs(self) -> int:
        """Of each process."""
        return self.recipe.rollout.num_envs

    @property
    def moving(self) -> float:
        """That the simulator needs for a word, on this process's share of the cores."""
        workers = max(1.0, self.machine.cores / self.machine.on_node)
        if asked := self.recipe.rollout.num_workers:
            workers = min(workers, asked)
        env = self.recipe.env
        return self.machine.word_seconds(env.frame_size) / min(workers, self.num_envs)

    @property
    def deciding(self) -> float:
        """That the policy needs for a word in a rollout."""
        groups = min(self.recipe.rollout.rollout_groups, self.num_envs)
        rows = -(-self.num_envs // groups)
        return self.decide(rows) / rows

    @property
    def word(self) -> float:
        """That a word of a rollout takes.

        A GPU scores one group of environments while the cores move another. Cores that do both
        do one after the other.
        """
        if self.is_overlapped:
            return max(self.moving, self.deciding)
        return self.moving + self.deciding

    @property
    def is_overlapped(self) -> bool:
        """Whether one of them goes on while the other does."""
        return self.machine.gpu is not None and self.recipe.rollout.rollout_groups > 1

    def decide(self, rows: int) -> float:
        """Of scoring the words of so many fresh observations."""
        sizes = self.sizes
        seconds = rows * self._encoding + self._vision(rows, "decide")
        seconds += self._language(rows * sizes.rest, sizes.trunk, "decide")
        above = sizes.layers - sizes.trunk
        return seconds + self._language(
            sizes.prefix + rows * sizes.rest, above, self._deciding_work
        )

    def rescore(self, rows: int, is_kept: bool = True) -> float:
        """Of scoring so many words again, from what was kept of them."""
        above = self.sizes.layers - (self.sizes.trunk if is_kept else 0)
        tokens = self.sizes.prefix + rows * self.sizes.rest
        unseen = 0.0 if is_kept else rows * self._encoding + self._vision(rows, "decide")
        scoring = self._language(tokens, above, self._deciding_work)
        return rows * self._prompting + unseen + scoring

    def learn(self, rows: int, is_kept: bool) -> float:
        """Of a step of the optimiser.

        Args:
            rows: Of its minibatch.
            is_kept: Whether what frozen parts make of the observations is known already.
        """
        size = self.recipe.ppo.micro_batch_size or rows
        parts = [min(size, rows - done) for done in range(0, rows, size)]
        return sum(self._learn(part, is_kept) for part in parts) + self._optimizing

    def _learn(self, rows: int, is_kept: bool) -> float:
        """Of forward and backward."""
        sizes, model = self.sizes, self.recipe.model
        work: Work = "lora" if model.use_peft else "full"
        tokens = sizes.prefix + rows * sizes.rest
        seconds = rows * self._prompting
        if sizes.vision_is_trained:
            seconds += rows * self._encoding + self._vision(rows, "full")
        elif not is_kept:
            seconds += rows * self._encoding + self._vision(rows, "decide")
        if sizes.trunk and not is_kept:
            seconds += self._language(rows * sizes.rest, sizes.trunk, "decide")
        above = sizes.layers - sizes.trunk
        if model.gradient_checkpointing:
            seconds += self._language(tokens, above, self._deciding_work)
        return seconds + self._language(tokens, above, work)

    @property
    def reducing(self) -> float:
        """Of averaging a step's gradients, fp32, over all processes; DDP hides some of it."""
        return self.machine.reducing(4.0 * self.sizes.trained)

    @property
    def _deciding_work(self) -> Work:
        return "decide_lora" if self.recipe.model.use_peft else "decide"

    @property
    def _encoding(self) -> float:
        """Of a frame's way to the model."""
        return self.sizes.patches * self.machine.constants["encode_s_per_patch"]

    @property
    def _prompting(self) -> float:
        """Of a prompt's."""
        return self.machine.constants["prompt_s"]

    @property
    def _optimizing(self) -> float:
        """Of the optimiser's own step."""
        gpu = self.machine.gpu
        if gpu is None:
            return self.sizes.trained * self.machine.constants["optimizer_s_per_parameter"]
        # Weight, gradient and two moments are read, all but the gradient written.
        return self.sizes.trained * 28 / gpu.bandwidth

    def _vision(self, rows: int, work: Work) -> float:
        sizes = self.sizes
        flops = 2.0 * sizes.vision * rows * sizes.patches
        weights = sizes.vision * BYTES[self.recipe.model.dtype]
        return self.machine.seconds(flops, sizes.vision_hidden, sizes.vision_layers, work, weights)

    def _language(self, tokens: float, layers: int, work: Work) -> float:
        sizes, model = self.sizes, self.recipe.model
        if not layers:
            return 0.0
        context = sizes.prefix + sizes.rest
        flops = tokens * layers * (2.0 * sizes.layer + 4.0 * sizes.hidden * context)
        weights = layers * sizes.layer * BYTES[model.dtype]
        factor = FOUR_BIT_FACTOR if model.is_quantized else 1.0
        return factor * self.machine.seconds(flops, sizes.hidden, layers, work, weights)
