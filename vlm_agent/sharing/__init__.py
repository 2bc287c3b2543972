"""What others are given: a policy's folder with a card, on the hub or on disk."""
