"""What is wrong with an environment."""
