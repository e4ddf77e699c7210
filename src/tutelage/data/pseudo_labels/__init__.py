"""A teacher's labels of the pool: stored, selected and summarised."""
