"""Rollouts: the policy speaks, the pool moves, the buffer keeps what learning needs."""
