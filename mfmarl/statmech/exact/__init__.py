"""What is known exactly: enumeration, transfer matrices, quadrature, closed forms."""
