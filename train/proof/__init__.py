"""The proof, on the user's machine, that a run which is killed goes on as if it had not been."""
