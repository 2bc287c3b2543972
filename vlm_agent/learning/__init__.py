"""The only place where robot and policy meet: rollouts, PPO, evaluation, checkpoints."""
