"""Ways to an equilibrium of a mean-field game, one a file; `mfmarl.games.solve` runs them."""
