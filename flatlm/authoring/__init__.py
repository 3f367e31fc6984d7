"""Models from outside the package: their authors describe them, and FlatLM exports them as its own."""
