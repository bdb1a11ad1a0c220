"""How cost, memory and what is learned change with the number of agents: measured, fitted, judged, foretold."""
