"""Scripts that measure this project against its peers; each prints one line of JSON."""
