"""What a person sees: the live display, the table, the report page and its pictures."""
