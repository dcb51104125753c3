"""The tests; helpers that several of them use lie beside them as plain modules."""
