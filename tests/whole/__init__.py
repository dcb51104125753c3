"""The project as people meet it: commands, pages, benchmarks, rooms."""
