"""What several test files use, a module for each subject."""
