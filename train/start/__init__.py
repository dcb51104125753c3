"""How a run starts: its command line and settings file, and what it needs, told or refused."""
