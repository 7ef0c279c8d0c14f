"""What a run goes through and takes, counted and measured before it begins."""
