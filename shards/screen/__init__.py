"""What people are shown: lines, numbers, names and URLs, escaped and without secrets."""
