"""How well a model predicts texts, and how many tasks it solves: `velocity eval`, and in a run."""
