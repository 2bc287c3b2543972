"""The warm start: cross-entropy on the expert's words, then DAgger."""
