"""Settings, the loop, and runs that are stopped and go on."""
