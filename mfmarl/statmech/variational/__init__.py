"""The variational free energy F[q] = <E>_q - T S[q] >= -T log Z, and what minimises it."""
