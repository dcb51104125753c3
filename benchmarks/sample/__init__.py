"""Writing text: tokens a second, alone, with guesses, and for many clients at once."""
