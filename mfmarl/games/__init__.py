"""Mean-field games: the same rules for N agents and for infinitely many."""
