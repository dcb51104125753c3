"""Problems that are solved by programs: completions are sampled and, in a sandbox, executed."""
