"""How a causal language model scores the answers of pairs: the plain way, and the fast one."""
