"""One step: the learning rate, the precision, the update, and what becomes of a bad one."""
