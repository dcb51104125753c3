"""Documents packed into rows of one length, none cut that fits into one."""
