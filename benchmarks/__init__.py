"""Scripts that measure this project beside its peers; each prints one line of JSON."""
