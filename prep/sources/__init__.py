"""Source files on this machine: what --input names, each real file once, and what is left out."""
