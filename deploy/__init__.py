"""Setting up and starting: standard library only, so that it runs before anything is installed. Not distributed."""
