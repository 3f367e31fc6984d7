"""Conversations with an exported model: turns, what of them the model still sees, and how they are kept."""
