"""From observations to model inputs: prompts, tokens, pictures."""
