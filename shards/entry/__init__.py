"""How a command begins and ends: its options, declared once, and the one line it fails with."""
