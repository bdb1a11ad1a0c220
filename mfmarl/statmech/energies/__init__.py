"""What a system is: its energy, and what samplers need to know of it."""
