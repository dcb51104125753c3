"""What people are shown: lines, numbers, names, URLs; nothing in them commands or betrays."""
