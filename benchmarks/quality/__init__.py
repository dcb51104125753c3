"""No time, but what a change costs a model: rounding, export, a longer context."""
