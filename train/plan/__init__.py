"""What a run will need, before there is a GPU: memory, days, disk, money. Loads no torch."""
