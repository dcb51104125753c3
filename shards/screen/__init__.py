"""What people are shown: lines, numbers, names and URLs; no terminal obeys them, no secret is in."""
