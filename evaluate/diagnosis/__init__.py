"""What goes wrong: kinds of mistakes, actions that are missed, what scores mean."""
