"""What a terminal shows: the live display and the tables. Needs no torch."""
